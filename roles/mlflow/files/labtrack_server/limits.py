"""How long and how deep a request may be, by one rule for all routes of MLflow's interface.

MLflow bounds what it stores (1,000 metrics, 100 parameters, 100 tags in a batch, 100 runs in a comparison) and not what
it is asked: 200,000 numbers of experiments keep an instance busy for ten seconds, and each clause of a filter or an
order is another join in the database.
"""

import json
import zlib

from flask import Response, request
from mlflow.server import otel_api

from labtrack_server.answers import words
from labtrack_server.patching import replace

ITEMS = 10_000  # in one list
CLAUSES = 50  # of one order, or of one filter
DEPTH = 50
TEXT = 20_000  # characters of one filter
UNPACKED = 64 * 2**20  # bytes of a compressed request
SHORT = 500  # bytes of a request in which no filter can be too long
BY_CLAUSE = {"order_by", "orderBy"}


def complaint(document):
    """What is too long or too deep in a request's parsed JSON; None if nothing is."""
    waiting = [(document, "the request", 1)]
    while waiting:
        value, name, depth = waiting.pop()
        if depth > DEPTH:
            return f"The request is nested more than {DEPTH} deep. To fix: send flat lists."
        if isinstance(value, dict):
            waiting.extend((inner, key, depth + 1) for key, inner in value.items())
        elif isinstance(value, list):
            most = CLAUSES if name in BY_CLAUSE else ITEMS
            if len(value) > most:
                return (
                    f"'{name}' has {len(value)} items, and this server takes {most}. To fix: ask in several requests."
                )
            waiting.extend((inner, name, depth + 1) for inner in value)
        elif isinstance(value, str) and "filter" in name.lower() and (said := _long_filter(name, value)):
            return said
    return None


def _long_filter(name, text):
    clauses = text.upper().count(" AND ") + 1
    if len(text) > TEXT or clauses > CLAUSES:
        return (
            f"'{name}' has {len(text)} characters and {clauses} clauses, and this server takes {TEXT} and {CLAUSES}. "
            "To fix: ask for less at once, or select in your own script."
        )
    return None


def check():
    """Refuse what is too long or too deep, before anything else reads it.  Short requests cost a few comparisons."""
    said = None
    if request.args:
        said = complaint(request.args.to_dict(flat=False))
    if (
        said is None
        and request.method in ("POST", "PUT", "PATCH", "DELETE")
        and request.mimetype != "multipart/form-data"
    ):
        body = b"" if "/mlflow-artifacts/artifacts/" in request.path else request.get_data(cache=True)
        brackets = body.count(b"[") + body.count(b"{")
        # With fewer brackets, commas and characters nothing is too deep or too long.
        if brackets > DEPTH or body.count(b",") >= CLAUSES or len(body) > SHORT:
            try:
                said = complaint(json.loads(body))
            except RecursionError:
                said = f"The request is nested more than {DEPTH} deep. To fix: send flat lists."
            except ValueError:
                said = None  # MLflow says what is wrong with it
    return Response(words("INVALID_PARAMETER_VALUE", said), 400, mimetype="application/json") if said else None


def unpack(original):
    """Unpack a compressed request up to UNPACKED bytes: a gzip of 16 MiB can hold 16 GiB."""

    def bounded(raw_body, content_encoding):
        if content_encoding in ("gzip", "deflate"):
            for kind in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
                try:
                    opened = zlib.decompressobj(kind)
                    body = opened.decompress(raw_body, UNPACKED)
                except zlib.error:
                    continue
                if opened.unconsumed_tail:
                    raise otel_api.HTTPException(400, f"Unpacked, the request has more than {UNPACKED} bytes.")
                return body
        return original(raw_body, content_encoding)

    return bounded


def shallow(original):
    """Answer 400, not 500, to OTLP's JSON that is too deep or has other things in the places of its own."""

    def converted(body):
        try:
            return original(body)
        except (RecursionError, AttributeError, TypeError) as error:
            raise ValueError("no OTLP") from error

    return converted


def install(app):
    """Look at each request before anything else does."""
    app.before_request_funcs.setdefault(None, []).insert(0, check)
    replace(otel_api, "_convert_otlp_json_ids_to_base64", shallow)
    replace(otel_api, "decompress_otlp_body", unpack)

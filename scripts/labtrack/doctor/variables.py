"""The variables, as MLflow and boto3 will read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from labtrack.doctor.context import Context
from labtrack.doctor.result import Result, failed, ok, warning
from labtrack.errors import BadInputError
from labtrack.tracking import credentials
from labtrack.tracking.address import hide_login

SERVER, STORE = "variables", "store variables"
_SOURCE = "source your file first:  . ./mlflow_env.sh   (or: labtrack doctor --file mlflow_env.sh)"
_LOCAL = ("localhost", "127.0.0.1", "::1")
TRUST = (
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "AWS_CA_BUNDLE",
)
CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")


def check(context: Context) -> Iterator[Result]:
    """What MLflow needs to find the server and log in."""
    env, given = context.env, context.env.get("MLFLOW_TRACKING_URI", "")
    if not given:
        yield failed(SERVER, "MLFLOW_TRACKING_URI is not set", _SOURCE)
        return
    try:
        uri, login = context.uri, context.credentials.login
    except BadInputError as error:
        here = given.startswith(("/", "./", "file:", "sqlite:"))
        seen = f"MLFLOW_TRACKING_URI is {given!r}: runs are recorded here, not on a server" if here else error.what
        yield failed(SERVER, seen, _SOURCE if here else error.hint)
        return
    if not (login.user and login.password) and not login.token and not env.get(credentials.PLUGIN):
        missing = [name for name in (credentials.USER, credentials.PASSWORD) if not env.get(name)]
        yield failed(SERVER, f"{', '.join(missing)} not set", _SOURCE)
        return
    odd = [name for name, value in env.items() if name.startswith(("MLFLOW_", "AWS_")) and _odd(name, value)]
    if odd:
        hint = "the file was edited or copied with Windows line ends: get it again."
        yield failed(SERVER, f"a stray quote, blank or line end in {', '.join(sorted(odd))}", hint)
        return
    yield ok(SERVER, f"{uri}, {context.credentials.whom}")
    yield from _doubtful(context)


def _odd(name: str, value: str) -> bool:
    """Whether a value is not what somebody meant; a password may hold anything but a line end at its end."""
    if name.endswith(("_PASSWORD", "_SECRET_ACCESS_KEY")):
        return value.endswith("\r")
    return value != value.strip() or value[:1] in ("'", '"')


def _doubtful(context: Context) -> Iterator[Result]:
    env, server = context.env, context.server
    if server.scheme == "http" and server.hostname not in _LOCAL:
        hint = "use https://; a server without it is not labtrack's."
        yield warning(SERVER, "http:// sends the password readable over the network", hint)
    if env.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        hint = "unset MLFLOW_TRACKING_INSECURE_TLS"
        yield warning(SERVER, "MLFLOW_TRACKING_INSECURE_TLS is set: anybody in between can read the password", hint)
    for name in TRUST:
        if env.get(name) and not Path(env[name]).exists():
            hint = "source mlflow_env.sh again on this machine, which puts the file there."
            yield failed(SERVER, f"{name} names {env[name]}, which is not on this machine", hint)
    if "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in env:
        yield warning(SERVER, "no retry limit is set: a dead server then holds every call for 4 minutes", _SOURCE)
    if env.get("MLFLOW_REGISTRY_URI"):
        hint = "unset MLFLOW_REGISTRY_URI, unless models are to go to another server."
        yield warning(
            SERVER, f"MLFLOW_REGISTRY_URI is set: models go to {hide_login(env['MLFLOW_REGISTRY_URI'])}", hint
        )


def check_store(context: Context) -> Iterator[Result]:
    """What boto3 needs to write artifacts to the store."""
    env = context.env
    if not context.direct:
        yield ok(STORE, "none: artifacts go through the server")
        return
    needed = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    missing = [name for name in needed if not env.get(name)]
    if missing:
        yield failed(STORE, f"{', '.join(missing)} not set", _SOURCE)
        return
    endpoint = env["MLFLOW_S3_ENDPOINT_URL"]
    if not endpoint.startswith(("https://", "http://")):
        yield failed(
            STORE,
            f"MLFLOW_S3_ENDPOINT_URL is {hide_login(endpoint)!r}, without https:// in front",
            f"export MLFLOW_S3_ENDPOINT_URL=https://{endpoint.rpartition('@')[2]}",
        )
        return
    yield ok(STORE, f"{hide_login(endpoint)}, key {env['AWS_ACCESS_KEY_ID']}")
    unset = [name for name in CHECKSUMS if env.get(name) != "when_required"]
    if unset:
        seen = f"{', '.join(unset)} not when_required: boto3 then adds checksums that other stores refuse or store"
        yield warning(STORE, seen, "; ".join(f"export {name}=when_required" for name in unset))
    if env.get("AWS_SESSION_TOKEN"):
        hint = "unset AWS_SESSION_TOKEN"
        yield warning(STORE, "AWS_SESSION_TOKEN is set, which belongs to another key: the store will refuse", hint)

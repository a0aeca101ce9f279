"""What a cloud's services refuse or can't do, in words: the one place where their errors are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests
from keystoneauth1 import exceptions as keystone
from openstack import exceptions as sdk

from labtrack.errors import LabtrackError, causes, innermost

# What the services' libraries raise for all that is not a defect of ours.
ERRORS = (sdk.SDKException, keystone.ClientException, requests.exceptions.RequestException)
SHOWN = 300  # characters of a service's own words
LATER = "Try again in a minute; if it stays, look at the cloud's status page."
# What tells OpenStack's services by the addresses of their questions: first ports and paths, then words.
_SERVICES = (
    ("network (Neutron)", r":9696\b|/v2\.0/"),
    ("compute (Nova)", r":8774\b|/v2\.1\b"),
    ("image (Glance)", r":9292\b|/v2/images"),
    ("block-storage (Cinder)", r":8776\b"),
    ("object-store (Swift)", r"/AUTH_|/swift/v1"),
    ("identity (Keystone)", r":5000\b|:35357\b|/v3/(auth|users|credentials|projects)"),
    ("network (Neutron)", "network|neutron"),
    ("compute (Nova)", "compute|nova"),
    ("image (Glance)", "image|glance"),
    ("block-storage (Cinder)", "volume|cinder|block"),
    ("object-store (Swift)", "object|swift"),
    ("identity (Keystone)", "identity|keystone"),
)


@contextmanager
def explained(asked: str = "") -> Iterator[None]:
    """Turns what a service's library raises into a LabtrackError.  asked: of what, for the message."""
    try:
        yield
    except ERRORS as error:
        what, hint = explain(error)
        raise LabtrackError(f"{asked}: {what}" if asked else what, hint) from None


def explain(error: Exception) -> tuple[str, str]:
    """What a service said, with its status, and what helps: to wait only where it may answer otherwise later."""
    if isinstance(error, (sdk.EndpointNotFound, keystone.EndpointNotFound, sdk.ServiceDiscoveryException)):
        said = _one_line(str(error))
        return f"the cloud has no such service in this region: {said}", (
            "Correct region_name in clouds.yaml (or OS_REGION_NAME); `openstack catalog list` shows what there is."
        )
    if isinstance(error, sdk.DuplicateResource):
        return _one_line(str(error)), "Name the one that is meant by its id, and rename or delete the others."
    status = status_of(error)
    if status is None:
        return _without_answer(error)
    service, said = service_of(error), words(error)
    seen = f"{service} answers {status}: {said}" if said else f"{service} answers {status}"
    if may_pass(status):
        return seen, LATER
    return seen, _HINTS.get(status, _OTHER)


_RULES = (
    "an application credential with access rules needs a rule for each service that the kit asks "
    "(`openstack access rule list`): make one without rules."
)
_HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: f"Log in again: a token may have expired; {_RULES}",
    HTTPStatus.FORBIDDEN: f"This login may not ask this: ask the project's owner for the role member; {_RULES}",
    HTTPStatus.NOT_FOUND: (
        "The service does not know the question: look at its address in `openstack catalog list`, or ask the cloud's "
        "support, with this line."
    ),
    HTTPStatus.CONFLICT: "See what is in the way (`openstack ... list`), and remove it or use another name.",
}
_OTHER = "Correct what it says, in lab.yml or in the login; else ask the cloud's support, with this line."


def may_pass(status: int) -> bool:
    """Whether the same question may be answered in a minute: the service is busy or broken, and refuses nothing."""
    return status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED
    )


def status_of(error: Exception) -> int | None:
    """The HTTP status of an answer; None where there was none."""
    for name in ("status_code", "http_status"):
        status = getattr(error, name, None)
        if isinstance(status, int) and status:
            return status
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None)
    return status if isinstance(status, int) else None


def service_of(error: Exception) -> str:
    """Which service answered, by the address that was asked."""
    url = str(getattr(error, "url", None) or getattr(getattr(error, "response", None), "url", None) or "")
    found = next((name for name, pattern in _SERVICES if re.search(pattern, url, re.IGNORECASE)), "")
    host = urlsplit(url).netloc
    return f"the service {found}" if found else f"the service at {host}" if host else "the cloud"


def words(error: Exception) -> str:
    """A service's own words: Neutron's, Nova's and Keystone's messages, without the JSON or HTML around them."""
    said = _inside(_body(error)) or str(getattr(error, "details", None) or getattr(error, "message", None) or "")
    said = _inside(_parsed(said)) or re.sub(r"<[^>]*>", " ", said)
    said = re.sub(r"^(\w*Exception|HttpError)?:? ?\d{3}:? ?((Client|Server) Error)?( for url: \S+?)?,? ?", "", said)
    return _one_line(said)


def _body(error: Exception) -> Any:
    answer = getattr(error, "response", None)
    try:
        return answer.json() if answer is not None else None
    except (ValueError, AttributeError):
        return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _inside(data: Any) -> str:
    """The message in an answer: each service wraps it in a word of its own."""
    if isinstance(data, str):
        return data
    if not isinstance(data, dict):
        return ""
    said = data.get("message") or data.get("faultstring")
    return (
        str(said) if said else next(filter(None, (_inside(one) for one in data.values() if isinstance(one, dict))), "")
    )


def _without_answer(error: Exception) -> tuple[str, str]:
    led = causes(error)

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in led)

    where = next((f" at {found[1]}" for one in led if (found := re.search(r"(https?://[^\s/]+)", str(one)))), "")
    said = _one_line(innermost(error))
    if any_of(keystone.SSLError, requests.exceptions.SSLError):
        return f"the service{where} shows a certificate that is not trusted here: {said}", (
            "Name the CA's file as `cacert` in clouds.yaml or as OS_CACERT."
        )
    if any_of(keystone.ConnectTimeout, requests.exceptions.Timeout):
        return f"the service{where} does not answer in time", f"Check the network (VPN? firewall?). {LATER}"
    if any_of(keystone.ConnectionError, requests.exceptions.ConnectionError):
        return f"the service{where} can't be reached: {said}", f"Check the network (VPN? firewall?). {LATER}"
    return _one_line(str(error)) or said, _OTHER


def _one_line(text: str) -> str:
    return " ".join(text.split())[:SHOWN].rstrip(". ")

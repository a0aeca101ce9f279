"""What a cloud's services say is told with status and words, and waiting is advised only where it can help."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from fakes import FakeCloud
from keystoneauth1 import exceptions as keystone
from keystoneauth1.session import Session
from openstack import exceptions as sdk

from labtrack.cloud import answers
from labtrack.cloud.ec2 import KeystoneKeys
from labtrack.cloud.login import login
from labtrack.errors import LabtrackError
from labtrack.lab import Lab


def response(status: int, body: Any, url: str) -> requests.Response:
    """An answer as requests has it."""
    found = requests.Response()
    found.status_code, found.url, found.request = status, url, requests.Request("GET", url).prepare()
    found.headers["Content-Type"] = "text/html" if isinstance(body, str) else "application/json"
    found._content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return found


def explained(status: int, body: Any, url: str) -> tuple[str, str]:
    """What is told of an answer that openstacksdk makes an error of."""
    try:
        sdk.raise_from_response(response(status, body, url))
    except sdk.SDKException as error:
        return answers.explain(error)
    raise AssertionError(status)


@pytest.mark.parametrize(
    ("status", "body", "url", "what", "later"),
    [
        (500, {"NeutronError": {"type": "x", "message": "The database is away."}}, "https://c:9696/v2.0/networks",
         "the service network (Neutron) answers 500: The database is away", True),
        (503, "<html><body><h1>503 Service Unavailable</h1></body></html>", "https://c/compute/v2.1/servers",
         "the service compute (Nova) answers 503: Service Unavailable", True),
        (429, {"overLimit": {"code": 429, "message": "Slow down"}}, "https://c:8774/v2.1/limits",
         "the service compute (Nova) answers 429: Slow down", True),
        (403, {"forbidden": {"code": 403, "message": "Policy doesn't allow x"}}, "https://c:8776/v3/1/volumes",
         "the service block-storage (Cinder) answers 403: Policy doesn't allow x", False),
        (401, {"error": {"code": 401, "message": "requires authentication"}}, "https://images.c.org/v2/images",
         "the service image (Glance) answers 401: requires authentication", False),
        (404, {"NeutronError": "not here"}, "https://network.c.org/v2.0/quotas/1/details",
         "the service network (Neutron) answers 404", False),
        (400, {"badRequest": {"message": "Invalid x"}}, "https://c:8774/v2.1/servers", "answers 400: Invalid x", False),
        (501, {"message": "not implemented"}, "https://c:8080/v1/AUTH_1", "object-store (Swift) answers 501", False),
    ],
)  # fmt: skip
def test_status_service_and_words(status: int, body: Any, url: str, what: str, later: bool) -> None:
    said, hint = explained(status, body, url)
    assert what in said and "<" not in said
    assert hint and ("in a minute" in hint) is later


def test_errors_of_keystoneauth_are_read_as_those_of_openstacksdk() -> None:
    answer = response(403, {"error": {"message": "You are not authorized"}}, "https://c:5000/v3/users/1")
    said, hint = answers.explain(keystone.from_response(answer, "GET", answer.url))
    assert "identity (Keystone) answers 403: You are not authorized" in said and "in a minute" not in hint


@pytest.mark.parametrize(
    ("error", "what", "hint"),
    [
        (keystone.EndpointNotFound("no volumev3 here"), "no such service in this region", "region_name"),
        (sdk.EndpointNotFound("no volumev3 here"), "no such service in this region", "region_name"),
        (sdk.DuplicateResource("More than one Router exists with the name 'x'."), "More than one Router", "by its id"),
        (requests.exceptions.ReadTimeout("read timed out"), "does not answer in time", "in a minute"),
        (sdk.SDKException("something of ours"), "something of ours", "Correct what it says"),
    ],
)
def test_troubles_without_an_answer(error: Exception, what: str, hint: str) -> None:
    said, help_ = answers.explain(error)
    assert what in said and hint in help_


def test_nobody_there() -> None:
    with pytest.raises(LabtrackError) as raised, answers.explained("asking"):
        Session().get("http://127.0.0.1:9/v2.0/networks", connect_retries=0)
    assert raised.value.what.startswith("asking: the service at http://127.0.0.1:9 can't be reached")
    assert "Check the network" in raised.value.hint


@pytest.mark.parametrize(("status", "later"), [(500, True), (503, True), (429, True), (400, False), (404, False)])
def test_keystones_answers_about_keys(status: int, later: bool, lab: Lab, cloud: FakeCloud) -> None:
    keys = KeystoneKeys(login(lab))
    cloud.refuses = (status, "as it is")
    with pytest.raises(LabtrackError, match=f"{status}: as it is") as raised:
        keys.list()
    assert ("in a minute" in raised.value.hint) is later

"""lab_alerts: what the schema can't say of it, and the secrets that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

VAULT = "vault"  # in the place of an address that is a secret
PASSWORD, TOKEN = "secret_alerts_mail_password", "secret_alerts_webhook_token"
URLS = {"webhook": "secret_alerts_webhook_url", "heartbeat": "secret_alerts_heartbeat_url"}
WHERE = ("lab_alerts", "mail", "encryption")
INSTEAD = "Use starttls or tls, or leave user out where the relay takes mail of this server without a login."
URL = re.compile(r"https?://[^\s/@]+(/\S*)?")


def of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """lab_alerts as lab.yml has it; empty where that is none, or not what it has to be."""
    found = data.get("lab_alerts")
    return found if isinstance(found, dict) else {}


def why_not(data: Mapping[str, Any]) -> str:
    """Why nobody should log in to the relay like this; empty when that is well."""
    mail = of(data).get("mail")
    if not isinstance(mail, dict) or "user" not in mail or mail.get("encryption") != "none":
        return ""
    return "lab_alerts.mail has a user and encryption: none: the password would go over the network as it is."


def missing(data: Mapping[str, Any], secrets: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The secrets that it needs and that are not there, or are no addresses: name, and what for."""
    alerts = of(data)
    mail, webhook = alerts.get("mail") or {}, alerts.get("webhook") or {}
    if "user" in mail and not secrets.get(PASSWORD):
        yield PASSWORD, f"the password of {mail['user']} at {mail['relay']}"
    if webhook.get("template") == "matrix" and not secrets.get(TOKEN):
        yield TOKEN, "the access token of the account that writes into the room"
    for name, given in (("webhook", webhook.get("url")), ("heartbeat", alerts.get("heartbeat"))):
        if given == VAULT and not URL.fullmatch(secrets.get(URLS[name], "")):
            yield URLS[name], "an address that begins with https://"

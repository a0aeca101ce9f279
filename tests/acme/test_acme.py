"""Certificates from ACME directories: Pebble's, asked by the role's settings and Debian's certbot."""

from __future__ import annotations

import json
from pathlib import Path

from acme_server import HMAC_KEY, KID, RATE_LIMIT, Directory, Server


def test_an_external_account_binding_and_a_rate_limit_at_its_renewal(server: Server, tmp_path: Path) -> None:
    wants = {"externalAccountBindingRequired": True, "externalAccountMACKeys": {KID: HMAC_KEY}}
    with Directory.running(tmp_path / "wants", server, **wants) as directory:
        server.configure(directory)
        server("apply")
        placeholder = server.served
        said = server("issue", fails=True)
        assert "externalAccountRequired" in said or "external account binding" in said.lower(), said
        assert "lab_acme_eab_kid" in said and server.served == placeholder

        server.configure(directory, certificates_acme_eab_kid=KID, certificates_acme_eab_hmac_key=HMAC_KEY[::-1])
        said = server("issue", fails=True)
        assert "lab_acme_eab_kid" in said and HMAC_KEY[::-1] not in said and server.served == placeholder

        server.configure(directory, certificates_acme_eab_kid=KID, certificates_acme_eab_hmac_key=HMAC_KEY)
        assert server("issue") == "changed\n" and server.is_of(directory)

        first = server.served
        directory.limited, directory.asked = True, []
        assert RATE_LIMIT in server.timer()
        assert directory.times("order-plz") == 1 and server.served == first
        told = json.loads(server("status", "--json", fails=True))
        assert told["status"] == "warning" and "its renewal failed: journalctl -u certbot.service" in told["seen"]
        for call in ("apply", "issue", "renew"):
            assert server(call) == "", "what is served is good, so nobody asks again"
        assert directory.times("order-plz") == 1 and server.served == first
        directory.limited = False
        assert server.timer() == "" and server.served != first and server.is_of(directory), "a renewal needs no binding"
        assert "days" in server("status")


def test_from_staging_to_another_directory(server: Server, directory: Directory, tmp_path: Path) -> None:
    server.configure(directory)
    server("apply")
    server("issue")
    staged, asked = server.served, len(directory.asked)
    with Directory.running(tmp_path / "production", server) as production:
        server.configure(production)
        assert server("apply") == "" and server.served == staged, "served on until there is the other"
        assert "there is none of" in server("status", fails=True)
        assert server("issue") == "changed\n"
        assert server.is_of(production) and not server.is_of(directory)
        assert production.times("sign-me-up") == 1, "an account of its own"
        assert server.timer() == "" and production.times("order-plz") == 2 and server.is_of(production)
        assert server("issue") == "" == server("apply")
    assert len(directory.asked) == asked, "staging was not asked again"

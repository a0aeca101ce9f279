#!/usr/bin/python3
"""Keeps the server's certificate: makes or gets it, renews it, and lets nothing reach nginx that nginx does not take.

labtrack-certificate apply     bring it in line with the settings; --check only says whether something would change
labtrack-certificate renew     the same by the timer: the lab's own CA is never made anew
labtrack-certificate issue     have certbot get the first one from the ACME directory; nginx has to run for it
labtrack-certificate install   certbot's hook: hand its new certificate to nginx
labtrack-certificate status    days left, and whether it renews itself; --json; exit code 0, 1 warning, 2 failed

Reads SETTINGS. What `apply` is given beside them, it reads as JSON from standard input: "ca" (key and certificate of
the lab's CA), or "certificate" and "key". Prints "changed", and "changed ca" where the CA is another than was given.
Runs as root, with Python's own library and openssl.
"""

from __future__ import annotations

import calendar
import fcntl
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.append("/usr/local/lib/labtrack-certificate")
from labtrack_pair import ROOT, STATE, Fault, Pair, holds, new_key, openssl, read, scratch, write

SETTINGS = ROOT / "etc/labtrack-certificate.json"
LETSENCRYPT = ROOT / "etc/letsencrypt"
LINEAGE = "labtrack"  # what certbot calls the certificate
RENEW_AT = 11 / 30  # of its time left: a little before `labtrack verify` warns, at one third
DAY = 86400
LONGEST_CN = 64
PAUSE = 3600  # seconds after a rate limit that does not say how long
RENEWED_BY = {"selfsigned": "labtrack-certificate.service", "acme": "certbot.service"}


class Keeper(Pair):
    """The certificate as the settings want it."""

    def __init__(self) -> None:
        settings = json.loads(SETTINGS.read_text())
        super().__init__(ROOT / settings["directory"].lstrip("/"), settings["fqdn"])
        self.method = settings["method"]
        self.days, self.ca_days = int(settings["days"]), int(settings["ca_days"])
        self.acme = settings.get("acme", {})
        self.ca, self.ca_key = self.folder / "ca.pem", self.folder / "ca.key"
        self.live = LETSENCRYPT / "live" / LINEAGE

    # --- the lab's own CA

    def take_ca(self, given: str, check: bool) -> bool:
        """Put the CA that the lab keeps in place; whether that is a change."""
        blocks = re.findall(r"-----BEGIN [A-Z ]+-----\n.*?\n-----END [A-Z ]+-----\n", given, re.DOTALL)
        key = "".join(block for block in blocks if "PRIVATE KEY" in block)
        certificate = "".join(block for block in blocks if "PRIVATE KEY" not in block)
        if (read(self.ca), read(self.ca_key)) == (certificate, key):
            return False
        if not check:
            write(self.ca_key, key)
            write(self.ca, certificate)
        return True

    def ca_serves(self) -> bool:
        """Whether the CA is whole, may sign for the name, and outlives what it signs."""
        if not self.ca.exists() or not self.ca_key.exists() or not holds("pkey", "-in", self.ca_key, "-noout"):
            return False
        shown = openssl("x509", "-in", self.ca, "-noout", "-ext", "nameConstraints")
        end = str(self.days * DAY)
        return (
            openssl("x509", "-in", self.ca, "-noout", "-pubkey") == openssl("pkey", "-in", self.ca_key, "-pubout")
            and re.search(rf"DNS:{re.escape(self.fqdn)}\s", shown) is not None
            and holds("x509", "-in", self.ca, "-noout", "-checkend", end)
        )

    def make_ca(self) -> None:
        """Sign the CA's certificate, with the key that is there: files that trust the old one go on trusting it."""
        if not holds("pkey", "-in", self.ca_key, "-noout"):
            write(self.ca_key, new_key())
        name = f"labtrack CA for {self.fqdn}"
        name = name if len(name) <= LONGEST_CN else "labtrack CA"
        anything = ":".join("0" * 8)
        # Whoever trusts this CA trusts it for the one name, whatever becomes of its key.
        extensions = [
            "basicConstraints = critical, CA:TRUE, pathlen:0",
            "keyUsage = critical, keyCertSign, cRLSign",
            "subjectKeyIdentifier = hash",
            f"nameConstraints = critical, permitted;DNS:{self.fqdn}, excluded;IP:0.0.0.0/0.0.0.0, "
            f"excluded;IP:{anything}/{anything}",
        ]
        heads = [
            "[req]",
            "prompt = no",
            "distinguished_name = dn",
            "x509_extensions = x",
            "[dn]",
            f"CN = {name}",
            "[x]",
        ]
        with scratch() as folder:
            write(folder / "ca.cnf", "\n".join([*heads, *extensions, ""]))
            made = openssl(
                "req", "-x509", "-new", "-sha256", "-key", self.ca_key, "-config", folder / "ca.cnf",
                "-days", str(max(self.ca_days, 2 * self.days)),
            )  # fmt: skip
        write(self.ca, made)

    def selfsigned(self, given: str, may_make_ca: bool, check: bool) -> Iterator[str]:
        """A certificate of the lab's CA, for the name, and good for another third of its time."""
        if given and self.take_ca(given, check):
            yield "changed"
            if check:
                return
        if not self.ca_serves():
            if not may_make_ca:
                raise Fault(
                    "The lab's CA can't sign any more.", "run playbooks/deploy.yml, which makes its certificate anew."
                )
            yield "changed"
            if check:
                return
            self.make_ca()
            yield "changed ca"
        elif may_make_ca and not given and not check:
            yield "changed ca"  # it is there already, and the lab does not have it yet
        if not self.is_fresh():
            if not check:
                self.sign()
            yield "changed"

    def is_fresh(self) -> bool:
        """Whether the server's certificate is of the CA, for the name, with its key, and need not be renewed yet."""
        until = str(int(time.time() + self.days * DAY * RENEW_AT))
        signed = ["-CAfile", self.ca, "-purpose", "sslserver", "-verify_hostname", self.fqdn, "-attime", until]
        return not self.installed() and holds("verify", *signed, self.certificate)

    def sign(self) -> None:
        """Sign a certificate with the CA, with the key that is there, and serve it."""
        key = read(self.key) if holds("pkey", "-in", self.key, "-noout") else new_key()
        with scratch() as folder:
            write(folder / "key", key)
            subject = f"/CN={self.fqdn}" if len(self.fqdn) <= LONGEST_CN else "/"
            write(folder / "csr", openssl("req", "-new", "-sha256", "-key", folder / "key", "-subj", subject))
            extensions = [
                "basicConstraints = critical, CA:FALSE",
                "keyUsage = critical, digitalSignature",
                "extendedKeyUsage = serverAuth",
                f"subjectAltName = DNS:{self.fqdn}",
                "authorityKeyIdentifier = keyid",
            ]
            write(folder / "extensions", "\n".join(extensions))
            made = openssl(
                "x509", "-req", "-sha256", "-in", folder / "csr", "-CA", self.ca, "-CAkey", self.ca_key,
                "-days", str(self.days), "-set_serial", f"0x{secrets.randbits(152) | 1 << 151:x}",
                "-extfile", folder / "extensions",
            )  # fmt: skip
        self.install(made, key)

    # --- ACME

    def placeholder(self) -> bool:
        """Something that nginx can start with, until there is a certificate; whether that is a change."""
        if not self.installed():
            return False
        with scratch() as folder:
            write(folder / "key", new_key())
            made = openssl(
                "req", "-x509", "-sha256", "-key", folder / "key", "-days", "30", "-subj", "/CN=labtrack placeholder",
                "-addext", f"subjectAltName=DNS:{self.fqdn}",
            )  # fmt: skip
            return self.install(made, read(folder / "key"))

    def obtained(self) -> bool:
        """Whether certbot has a certificate from this directory, for this name, that has not ended."""
        renewal = read(LETSENCRYPT / "renewal" / f"{LINEAGE}.conf")
        server = re.search(r"(?m)^server = (.*)$", renewal)
        of_it = bool(server) and server[1].strip() == self.acme["directory"]
        return of_it and not self.why_unfit(self.live / "fullchain.pem", self.live / "privkey.pem")

    def issue(self) -> bool:
        """Have certbot get a certificate where it has none, and serve what it has; whether that is a change."""
        before = read(self.certificate)
        if not self.obtained():
            self.ask()
        self.take_live()  # which certbot's hook may have done already
        return read(self.certificate) != before

    def take_live(self) -> bool:
        """Serve what certbot has."""
        return self.install(read(self.live / "fullchain.pem"), read(self.live / "privkey.pem"))

    def ask(self) -> None:
        """Run certbot once.  Not while the directory's rate limit holds."""
        limit, here = STATE / "limited.json", [self.acme["directory"], self.fqdn]
        limited = json.loads(read(limit) or "{}")
        if limited.get("of") == here and limited["until"] > time.time():
            raise rate_limited(limited["said"], limited["until"])
        command = ["certbot", "certonly", "--config", LETSENCRYPT / "labtrack.ini", "--non-interactive"]
        command += ["--force-renewal", "--renew-with-new-domains"]
        environment = {**os.environ, **self.environment()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0 and self.obtained():
            limit.unlink(missing_ok=True)
            return
        said = certbot_said(done.stdout + done.stderr)
        if re.search(r"rateLimited|too many|rate limit|HTTP 429", done.stdout + done.stderr, re.IGNORECASE):
            until = retry_after(said)
            write(limit, json.dumps({"of": here, "until": until, "said": said}))
            raise rate_limited(said, until)
        hint = (
            f"the directory has to reach http://{self.fqdn}/ on port 80, so the name has to resolve to this server for "
            "everybody; try with lab_acme_directory: staging, where failures do not count."
        )
        if re.search(r"(?i)register an account|external.?account|\bEAB\b", said):
            hint = (
                "an account needs what the operator of the directory says: where that is an external account binding, "
                "lab_acme_eab_kid in lab.yml and secret_acme_eab_hmac_key in secrets.yml, both as they were given."
            )
        raise Fault(
            f"certbot got no certificate for {self.fqdn} from {self.acme['directory']}: {said}",
            f"{hint} What was served before is served on; /var/log/letsencrypt/letsencrypt.log has more.",
        )

    def environment(self) -> dict[str, str]:
        """What certbot needs to trust a directory of a private CA."""
        if not self.acme.get("ca"):
            return {}
        joined = Path(f"{self.acme['ca']}.joined")
        joined.write_text(read(Path("/etc/ssl/certs/ca-certificates.crt")) + read(Path(self.acme["ca"])))
        return {"REQUESTS_CA_BUNDLE": str(joined)}

    # --- all together

    def apply(self, given: dict[str, str], may_make_ca: bool, check: bool = False) -> Iterator[str]:
        """Bring it in line with the settings; what has changed."""
        for path in self.folder.iterdir():
            if path.stat().st_mode & 0o077:
                yield "changed"
                if not check:
                    path.chmod(0o600)
        if self.method == "provided":
            new = (given["certificate"], given["key"])
            if (read(self.certificate), read(self.key)) != new and (check or self.install(*new)):
                yield "changed"
        elif self.method == "selfsigned":
            yield from self.selfsigned(given.get("ca", ""), may_make_ca, check)
        elif self.obtained():
            if read(self.certificate) != read(self.live / "fullchain.pem") and (check or self.take_live()):
                yield "changed"
        elif self.installed() if check else self.placeholder():
            yield "changed"

    def status(self) -> tuple[str, str]:
        """Whether all is well with it (ok, warning, failed), and what was seen."""
        if why := self.installed():
            return "failed", f"{self.certificate}: {why}: run playbooks/deploy.yml"
        begins, ends = self.dates(self.certificate)
        days, third = int((ends - time.time()) // DAY), (ends - begins) / 3
        seen = f"{self.method}, valid for {days} more days"
        if self.method == "acme" and not self.obtained():
            limited = json.loads(read(STATE / "limited.json") or "{}")
            why = limited.get("said") or "`labtrack-certificate issue` asks for one, and says why not"
            return "failed", f"there is none of {self.acme['directory']} yet, and another one is served: {why}"
        unwell = "warning" if ends - time.time() > third / 3 else "failed"
        unit = RENEWED_BY.get(self.method, "")
        if unit and subprocess.run(["systemctl", "--quiet", "is-failed", unit], check=False).returncode == 0:
            return unwell, f"{seen}, but its renewal failed: journalctl -u {unit}"
        if self.method == "acme" and self.obtained() and read(self.certificate) != read(self.live / "fullchain.pem"):
            return unwell, f"{seen}, but a newer one is not served: `labtrack-certificate issue` says why"
        if ends - time.time() < third:
            what = f"journalctl -u {unit}" if unit else "get the next one, and run playbooks/deploy.yml"
            return unwell, f"{seen}, less than a third of its time: {what}"
        return "ok", seen


def certbot_said(text: str) -> str:
    """The lines of certbot's output that say what went wrong."""
    noise = r"Saving debug log|Ask for help|See the logfile|^- - -|Some challenges|^Requesting|^Account reg|^Renewing"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not re.search(noise, line)]
    return " ".join(dict.fromkeys(lines))[:1500] or "it did not say why"


def retry_after(said: str) -> float:
    """When the directory may be asked again, in seconds since the epoch."""
    when = re.search(r"retry after (\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)", said)
    if not when:
        return time.time() + PAUSE
    return calendar.timegm(time.strptime(f"{when[1]} {when[2]}", "%Y-%m-%d %H:%M:%S"))


def rate_limited(said: str, until: float) -> Fault:
    """The error while a rate limit holds."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(until))
    return Fault(
        f"The ACME directory's rate limit holds: {said}",
        f"it is not asked again before {shown} UTC, and what was served before is served on. Run playbooks/deploy.yml "
        "after that time, or let the daily timer; tries belong to lab_acme_directory: staging.",
    )


def main(arguments: list[str]) -> int:
    command, options = "".join(arguments[:1]), arguments[1:]
    if command == "status":  # without the lock: it writes nothing, and certbot may be at work for minutes
        status, seen = Keeper().status()
        print(json.dumps({"status": status, "seen": seen}) if "--json" in options else seen)
        return {"ok": 0, "warning": 1, "failed": 2}[status]
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        if command != "install":  # certbot's hook, whose certbot may be a child of ours
            fcntl.flock(lock, fcntl.LOCK_EX)
        keeper = Keeper()
        if command == "apply":
            given = json.loads(sys.stdin.read() or "{}")
            done = set(keeper.apply(given, may_make_ca=True, check="--check" in options))
        elif command == "renew":
            done = set(keeper.apply({}, may_make_ca=False)) if keeper.method == "selfsigned" else set()
            if keeper.method == "acme" and keeper.issue():
                done.add("changed")
        elif command == "issue":
            done = {"changed"} if keeper.issue() else set()
        elif command == "install":
            done = {"changed"} if keeper.method == "acme" and keeper.take_live() else set()
        else:
            print(__doc__, file=sys.stderr)
            return 2
    for line in sorted(done):
        print(line)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Fault as fault:
        print(f"{fault.args[0]}\nTo fix: {fault.args[1]}", file=sys.stderr)
        sys.exit(1)

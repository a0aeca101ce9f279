"""Debian's apache2 as Open OnDemand configures it: /node and /rnode pass every known user on to every port."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from ood_app import WITH_THE_TESTS, free_port, until

APACHE = Path("/usr/sbin/apache2")
MODULES = Path("/usr/lib/apache2/modules")
LOADED = ("mpm_event", "authz_core", "proxy", "proxy_http", "headers", "rewrite", "setenvif", "env", "ssl")
WHO = "X-Signed-In"  # who has logged in to this portal: a test says it by this field, in the place of a login

_CONFIG = """
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/pid
ErrorLog {folder}/error.log
ServerName {name}
Listen 127.0.0.1:{port}
{user}
SSLEngine on
SSLCertificateFile {folder}/portal.pem
SSLCertificateKeyFile {folder}/portal.key
TraceEnable off
Header always set Content-Security-Policy "frame-ancestors https://{name}:{port};"
RewriteEngine on
SetEnvIf {who} "^(.+)$" WHO=$1
RewriteCond %{{ENV:WHO}} ^$
RewriteRule ^/ - [R=401,L]
RequestHeader unset {who}
# of every request that is passed on; what a client writes into this field is replaced
RequestHeader set X-Forwarded-User "%{{WHO}}e"
RequestHeader set X-Forwarded-Proto "https"
RewriteRule ^/node/([^/]+)/(\\d+)(/.*|)$ http://$1:$2/node/$1/$2$3 [P]
RewriteRule ^/rnode/([^/]+)/(\\d+)(/.*|)$ http://$1:$2$3 [P]
<LocationMatch "^/(?<way>r?node)/(?<host>[^/]+)/(?<port>\\d+)">
  # the cookie's path is that of the node and port, whatever the answer has
  Header edit* Set-Cookie ";\\s*(?i)Domain[^;]*" ""
  Header edit* Set-Cookie ";\\s*(?i)Path[^;]*" ""
  Header edit Set-Cookie "^([^;]+)" "$1; Path=/%{{MATCH_WAY}}e/%{{MATCH_HOST}}e/%{{MATCH_PORT}}e"
</LocationMatch>
<LocationMatch "^/node/">
  Header edit Location "^[^/]+//[^/]+" ""
</LocationMatch>
"""


@dataclass
class Web:
    """A portal that is running."""

    url: str
    certificate: Path
    log: Path

    def ask(self, user: str | None, method: str, path: str, **more: object) -> requests.Response:
        """A request of somebody who is logged in to the portal, or of nobody."""
        headers = {**({WHO: user} if user else {}), **more.pop("headers", {})}  # type: ignore[dict-item]
        return requests.request(
            method, self.url + path, headers=headers, verify=str(self.certificate), allow_redirects=False, timeout=60,
            **more,
        )  # type: ignore[arg-type]  # fmt: skip


@contextlib.contextmanager
def portal(folder: Path) -> Iterator[Web]:
    """Runs one until the context is left."""
    if not APACHE.exists() or not shutil.which("openssl"):
        pytest.skip("needs apache2 and openssl (apt install apache2-bin openssl)")
    port, name = free_port(), "localhost"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        [*make.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", "portal.key", "-out", "portal.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    loaded = [f"LoadModule {one}_module {MODULES}/mod_{one}.so" for one in LOADED]
    user = "User www-data\nGroup www-data" if os.getuid() == 0 else ""
    config = _CONFIG.format(folder=folder, name=name, port=port, user=user, who=WHO)
    (folder / "apache.conf").write_text("\n".join(loaded) + config)
    log = folder / "error.log"
    command = [*WITH_THE_TESTS, APACHE, "-DFOREGROUND", "-f", folder / "apache.conf"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    web = Web(f"https://{name}:{port}", folder / "portal.pem", log)

    def answers() -> bool:
        assert process.poll() is None, (process.stderr and process.stderr.read(), log.exists() and log.read_text())
        with contextlib.suppress(requests.ConnectionError):
            return web.ask(None, "GET", "/").status_code == 401
        return False

    try:
        until(answers)
        yield web
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)

"""Writing mlflow_env.sh's text from what a person is given."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from labtrack import __version__
from labtrack.cloud.key import Key
from labtrack.envfile.read import COMPLETE
from labtrack.errors import BadInputError
from labtrack.lab import Lab

# With MLflow's own limits each call to a dead server takes 4 minutes, to a silent one 20 (field).  With these it
# tries four times in 13 s, or in 92 s when nothing comes back; docs/researcher/mlflow_env.md has the table.
LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
# The server answers an upload only when the store has it all.
PROXIED_LIMITS = {**LIMITS, "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
STORE_LIMITS = {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "3"}
# The experiment of runs that name none.  MLflow's own, "Default", everybody shares (lab_shared_experiments): whoever
# looks for their runs of last year there looks through everybody's, and may not delete their own.
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
# What an earlier set-up may have left and what would win over, or clash with, this file's values.
IN_THE_WAY = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_REGISTRY_URI",
    "LABTRACK_ENV_FILE",
)
STORE_IN_THE_WAY = (
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "MLFLOW_S3_IGNORE_TLS",
)


@dataclass(frozen=True)
class _Authorities:
    """CA certificates in PEM.  The id changes with them, so that running jobs keep the file that they know."""

    text: str

    @property
    def pem(self) -> str:
        return quote(self.text)

    @property
    def id(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Contents:
    """What one person's file says.

    key: None where artifacts go through the server.  written: when the credentials were made, ISO 8601.
    """

    lab: Lab
    user: str
    password: str = field(repr=False)
    key: Key | None
    written: str


def render(contents: Contents) -> bytes:
    """The file, ending with a line that proves it complete and unedited."""
    lab, key = contents.lab, contents.key
    exports = {
        "LABTRACK_LAB": lab.name,
        "MLFLOW_TRACKING_URI": lab.url,
        "MLFLOW_TRACKING_USERNAME": contents.user,
        "MLFLOW_TRACKING_PASSWORD": contents.password,
        **({"LABTRACK_GATEWAYS": ",".join(lab.gateways)} if lab.gateways else {}),
        **(_direct(lab, key) if key else _proxied(lab)),
    }
    pinned, joined, authorities = _certificates(lab, with_store=key is not None)
    removed = [*IN_THE_WAY, *(STORE_IN_THE_WAY if key else ())]
    defaults = {**LIMITS, **STORE_LIMITS} if key else PROXIED_LIMITS
    managed = dict.fromkeys([*exports, EXPERIMENT, *defaults, *removed, *dict(pinned), *joined])
    text = _template().render(
        lab=lab.name,
        user=contents.user,
        url=lab.url,
        access=f"direct, s3://{lab.bucket} at {lab.s3_endpoint}" if key else "through the server",
        key_id=key.access if key else "",
        written=contents.written,
        version=__version__,
        lab_folder=lab.shown_folder,
        exports=[(name, quote(value)) for name, value in exports.items()],
        experiment=contents.user,
        defaults=defaults.items(),
        removed=removed,
        managed=managed,
        joined_authorities=_Authorities("\n".join(authorities)),
        pinned=[(name, _Authorities(pem)) for name, pem in pinned],
        joined=joined,
    )
    return seal(text)


def quote(value: str) -> str:
    """A value for the four shells.  shlex.quote leaves `=x` bare, which zsh takes for the path of x."""
    return "'" + value.replace("'", "'\"'\"'") + "'"


def seal(text: str) -> bytes:
    """`text` with its last line, which holds the checksum of everything before."""
    return f"{text}{COMPLETE}{hashlib.sha256(text.encode()).hexdigest()}\n".encode()


def _direct(lab: Lab, key: Key) -> dict[str, str]:
    return {
        "LABTRACK_BUCKET": lab.bucket,
        "MLFLOW_S3_ENDPOINT_URL": lab.s3_endpoint,
        "AWS_ACCESS_KEY_ID": key.access,
        "AWS_SECRET_ACCESS_KEY": key.secret,
        "AWS_DEFAULT_REGION": lab.s3_region,
        # boto3 >= 1.36 adds checksums that other stores refuse, or write into the object (boto3#4392, #4435)
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path",
    }


def _proxied(lab: Lab) -> dict[str, str]:
    # Without these two, MLflow 3 fetches every artifact by a presigned address of the store (field, pain 20).
    # Those requests can't be told a private CA, so a store with one counts as out of reach.
    if lab.clients_reach_store and not lab.s3_ca_file:
        return {}
    return {
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    }


def _certificates(lab: Lab, *, with_store: bool) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """What makes programs trust the lab's private CAs: variables with a CA each, further variables, and all CAs in PEM.

    The first ones name the CA alone, as only MLflow reads them, for the lab's server.  The others name a bundle of
    all CAs and what was trusted before, because all other hosts are checked by it too: they are those of requests,
    curl, and httpx with whatever else asks OpenSSL; boto3 has one of its own.
    """
    pinned: list[tuple[str, str]] = []
    joined: list[str] = []
    found: list[str] = []
    if server_ca := lab.server_ca:
        found.append(_pem(server_ca))
        pinned.append(("MLFLOW_TRACKING_SERVER_CERT_PATH", found[0]))
        joined += ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]
    elif lab.certificate == "selfsigned":
        raise BadInputError(
            f"The server's CA certificate {lab.ca_file} is not there yet.",
            "deploy the server first: ansible-playbook playbooks/deploy.yml puts it there.",
        )
    if with_store and lab.s3_ca_file:
        joined.append("AWS_CA_BUNDLE")
        found.append(_pem(lab.s3_ca_file))
    return pinned, joined, list(dict.fromkeys(found))


def _pem(file: Path) -> str:
    text = file.read_text(encoding="utf-8", errors="replace")
    pem = "\n".join(re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL))
    if not pem:
        raise BadInputError(f"{file} is not a PEM certificate.", "put the CA's certificate there, in PEM format.")
    return pem


def _template() -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701  a shell file: values are quoted for shells, not as HTML
        loader=jinja2.PackageLoader("labtrack.envfile", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("mlflow_env.sh.j2")

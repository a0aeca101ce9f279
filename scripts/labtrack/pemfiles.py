"""PEM files as people name them: read as OpenSSL reads them, and told apart from what only looks like them.

nginx, requests and OpenSSL pass over a block that they do not see, without a word, and then serve or trust another one.
So a file in which OpenSSL would miss a block is refused, with the command that puts it right.
"""

from __future__ import annotations

import base64
import binascii
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from labtrack.errors import BadInputError

CERTIFICATE, KEY = "certificate", "private key"
CERTIFICATES = ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")
KEYS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
LARGEST = 1 << 20  # bytes: a chain has some thousand
LINE = 64  # characters of base64 a line

_BEGIN = re.compile(r"-----BEGIN ([A-Z0-9 #]+)-----")
_BASE64 = re.compile(rb"(\xef\xbb\xbf)?\s*M[A-Za-z0-9+/=\s]+")  # M: DER begins so
# What PEM blocks of other kinds are, and what to do with the file.
_OTHER_BLOCKS = {
    "CERTIFICATE REQUEST": "a certificate request (CSR)",
    "NEW CERTIFICATE REQUEST": "a certificate request (CSR)",
    "PUBLIC KEY": "a public key",
    "RSA PUBLIC KEY": "a public key",
    "X509 CRL": "a list of revoked certificates",
    "OPENSSH PRIVATE KEY": "a private key in OpenSSH's format",
    "PKCS7": "PKCS #7, certificates in a container",
    "CMS": "PKCS #7, certificates in a container",
}


@dataclass(frozen=True)
class Block:
    """One block of a PEM file: its label, what it holds, and whether a passphrase protects it."""

    label: str
    der: bytes
    encrypted: bool = False

    @property
    def pem(self) -> str:
        """The block as every program takes it."""
        text = base64.b64encode(self.der).decode()
        lines = [text[start : start + LINE] for start in range(0, len(text), LINE)]
        return "\n".join([f"-----BEGIN {self.label}-----", *lines, f"-----END {self.label}-----", ""])


def read(path: Path, wanted: str) -> list[Block]:
    """The blocks of the PEM file `path`, at least one of the kind `wanted`, CERTIFICATE or KEY.

    Raises BadInputError with what the file is instead, and the command that makes PEM of it.
    """
    try:
        if path.is_dir():
            raise BadInputError(f"{path} is a folder.", f"Name the file with the {wanted} in it.")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise BadInputError(f"There is no file {path}.", "Make it, or name the right one.") from None
    except OSError as error:
        raise BadInputError(f"{path} can't be read: {error.strerror}.", f"ls -l {shlex.quote(str(path))}") from None
    return parse(data, path, wanted)


def parse(data: bytes, path: Path, wanted: str) -> list[Block]:
    """The same of what was read from `path`."""
    name, new = _named(path)
    if not data.strip():
        raise BadInputError(f"{path} is empty.", f"Name the file with the {wanted} in it.")
    if len(data) > LARGEST:
        raise BadInputError(f"{path} is larger than any {wanted}.", f"Name the file with the {wanted} in it.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[1::2].count(0) > len(data) // 4:
        raise BadInputError(f"{path} is written as UTF-16.", f"iconv -f UTF-16 -t UTF-8 {name} > {new}")
    if b"-----BEGIN " not in data:
        raise BadInputError(*_without_armour(data, path, wanted))
    found = _blocks(data, path)
    labels = [block.label for block in found]
    if not any(label in (CERTIFICATES if wanted == CERTIFICATE else KEYS) for label in labels):
        raise BadInputError(*_other(labels, path, wanted))
    return found


def _named(path: Path) -> tuple[str, str]:
    """The file, and the new one beside it, as a shell takes them."""
    return shlex.quote(str(path)), shlex.quote(str(path.with_name(f"{path.stem}-new.pem")))


def _blocks(data: bytes, path: Path) -> list[Block]:
    text = data.decode("latin-1")
    found: list[Block] = []
    label, body = "", [""]
    for line in (line.rstrip() for line in text.split("\n")):
        begins = _BEGIN.fullmatch(line)
        if not label and begins:
            label, body = begins[1], []
        elif label and line == f"-----END {label}-----":
            found.append(_block(label, body, path, len(found) + 1))
            label = ""
        elif label and "-----" in line:
            break  # of another block
        elif label:
            body.append(line)
    if label or len(found) < text.count("-----BEGIN "):
        raise BadInputError(*_missed(data, text, path))
    return found


def _block(label: str, body: list[str], path: Path, number: int) -> Block:
    encrypted = label == "ENCRYPTED PRIVATE KEY" or any("ENCRYPTED" in line for line in body[:2])
    if any(":" in line for line in body[:1]):  # headers, up to an empty line
        body = body[body.index("") :] if "" in body else []
    try:
        der = base64.b64decode("".join("".join(body).split()), validate=True)
    except (binascii.Error, ValueError):
        der = b""
    if not der:
        what = f"Block {number} of {path} ({label}) is damaged: its lines are no base64."
        raise BadInputError(what, "Copy the file again from where it came from, as a file and not by the clipboard.")
    return Block(label, der, encrypted)


def _missed(data: bytes, text: str, path: Path) -> tuple[str, str]:
    """Why OpenSSL would not see a block that is there."""
    name, _ = _named(path)
    if data.startswith(b"\xef\xbb\xbf-----BEGIN"):
        what = f"{path} begins with a byte order mark, so OpenSSL does not see its first block."
        return what, f"perl -pi -e 's/^\\xEF\\xBB\\xBF//' {name}"
    if re.search(r"-----[ \t]*-----BEGIN ", text):
        what = f"{path} has two blocks on one line: there is no end of line between -----END and -----BEGIN."
        return what, f"perl -pi -e 's/-----\\s*-----BEGIN /-----\\n-----BEGIN /g' {name}"
    if re.search(r"(?m)^[ \t]+-----(BEGIN|END) ", text):
        return f"{path} is indented, so OpenSSL does not see what is in it.", f"perl -pi -e 's/^[ \\t]+//' {name}"
    if "\r" in text and not re.search("\r\n|\n", text.strip()):
        what = f"{path} has the line ends of an old Macintosh, so OpenSSL does not see what is in it."
        return what, f"perl -pi -e 's/\\r/\\n/g' {name}"
    if text.count("-----END ") < text.count("-----BEGIN "):
        return f"{path} is cut: an -----END line is missing.", "Copy the whole file again from where it came from."
    what = f"{path} has a -----BEGIN line that is not alone on its line or has no -----END line of its kind."
    return what, "Each -----BEGIN and -----END is a line of its own: copy the file again from where it came from."


def _other(labels: list[str], path: Path, wanted: str) -> tuple[str, str]:
    """What a PEM file is that has nothing of the wanted kind, and what to do."""
    name, new = _named(path)
    if wanted == CERTIFICATE and any(label in KEYS for label in labels):
        return f"{path} is a private key, and no certificate.", "Name the file of the certificate."
    if wanted == KEY and any(label in CERTIFICATES for label in labels):
        return f"{path} is a certificate, and no private key.", "Name the file of the key that it was asked for with."
    kind = next((_OTHER_BLOCKS[label] for label in labels if label in _OTHER_BLOCKS), f"a PEM file of {labels[0]}")
    what = f"{path} is {kind}, and no {wanted}."
    if "PKCS #7" in kind and wanted == CERTIFICATE:
        return what, f"openssl pkcs7 -print_certs -in {name} -out {new}"
    if "CSR" in kind:
        return what, "That is what the CA is asked with: name the certificate that it answers with, and your own key."
    if "OpenSSH" in kind and wanted == KEY:
        return what, f"cp {name} {new} && ssh-keygen -p -m PKCS8 -N '' -f {new}"
    return what, f"Name the file with the {wanted} in it."


def _without_armour(data: bytes, path: Path, wanted: str) -> tuple[str, str]:
    """What a file is that is not PEM, and the command that makes PEM of it."""
    name, new = _named(path)
    if data.startswith(b"0"):  # a sequence of DER
        inside = data[: 2 + (data[1] & 0x7F if data[1] & 0x80 else 0) + 16][2:]
        if b"\x02\x01\x03\x30" in inside:
            out = "-nokeys" if wanted == CERTIFICATE else "-nocerts -nodes"
            hint = f"openssl pkcs12 -in {name} {out} -out {new}   (with -legacy where it is unsupported)"
            return f"{path} is PKCS #12 (.pfx, .p12): certificate and key in one container.", hint
        if b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02" in data[:32]:
            hint = f"openssl pkcs7 -inform DER -print_certs -in {name} -out {new}"
            return f"{path} is PKCS #7 (.p7b), certificates in a container.", hint
        convert = "x509 -inform DER" if wanted == CERTIFICATE else "pkey -inform DER"
        return f"{path} is DER, and PEM is wanted.", f"openssl {convert} -in {name} -out {new}"
    if data.startswith(b"\xfe\xed\xfe\xed"):
        hint = f"keytool -importkeystore -srckeystore {name} -destkeystore new.p12 -deststoretype PKCS12"
        return f"{path} is a Java keystore.", f"{hint}; then openssl pkcs12 -in new.p12 ... makes PEM of it."
    if _BASE64.fullmatch(data):
        convert = "x509" if wanted == CERTIFICATE else "pkey"
        hint = f"openssl base64 -d -A -in {name} | openssl {convert} -inform DER -out {new}"
        return f"{path} is base64 without its -----BEGIN and -----END lines.", f"{hint}   (after tr -d '\\n')"
    what = f"{path} has no {wanted} in it: there is no -----BEGIN line."
    return what, f"Name the PEM file with the {wanted}, a text that has a line -----BEGIN {wanted.upper()}-----."

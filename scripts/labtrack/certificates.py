"""The server's certificate as an admin gives it: judged before anything is replaced, and brought into nginx's form."""

from __future__ import annotations

import contextlib
import shlex
import ssl
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from labtrack import pemfiles
from labtrack.errors import BadInputError

SOON = timedelta(days=14)
LEAST_RSA = 2048  # bits: OpenSSL of Debian takes no fewer
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # that TLS 1.3 has
_OID_ISSUERS = AuthorityInformationAccessOID.CA_ISSUERS


@dataclass(frozen=True)
class Served:
    """A certificate with its chain, and its key, both as PEM that nginx takes, and what is to be noted of them."""

    chain: str
    key: str
    ends: datetime
    certificates: int
    names: tuple[str, ...]
    warnings: tuple[tuple[str, str], ...] = ()


def provided(
    certificate_file: Path, key_file: Path, fqdn: str, ca_file: Path | None = None, now: datetime | None = None
) -> Served:
    """What the server will serve as `fqdn`, from the two files.

    ca_file: where the CA of a private certificate may be.  Raises BadInputError with what is wrong and how to fix it.
    """
    now = now or datetime.now(timezone.utc)
    try:
        given = certificates_of(certificate_file)
    except BadInputError as error:
        if "is a private key" in error.what and _is_certificate(key_file):
            what = f"The two files are swapped: {certificate_file} is the private key, {key_file} the certificate."
            raise BadInputError(what, "Exchange lab_certificate_file and lab_certificate_key_file.") from None
        raise
    key, public = _key(key_file)
    _belongs(given, public, certificate_file, key_file)
    leaf, chain = given[0], _chain(given)
    _for_servers(leaf, fqdn)
    _strong(chain)
    for certificate in chain:
        _is_valid(certificate, leaf, now)
    notes = list(_of_trust(chain, ca_file, certificate_file))
    if leaf.not_valid_after_utc - now < SOON:
        what = f"The certificate ends in {(leaf.not_valid_after_utc - now).days} days, on {_shown(leaf)}."
        notes.append((what, "Get the next one now, put it into the same files, and run playbooks/deploy.yml."))
    if stat.S_IMODE(key_file.stat().st_mode) & 0o077:
        notes.append((f"Others can read the private key {key_file}.", f"chmod 600 {shlex.quote(str(key_file))}"))
    pem = "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain)
    return Served(pem, key, leaf.not_valid_after_utc, len(chain), tuple(_names(leaf)), tuple(notes))


def certificates_of(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file, in its order.  Raises BadInputError with what the file is instead."""
    blocks = [block for block in pemfiles.read(path, pemfiles.CERTIFICATE) if block.label in pemfiles.CERTIFICATES]
    found = []
    for number, block in enumerate(blocks, 1):
        der = _without_trust(block.der) if block.label.startswith("TRUSTED") else block.der
        try:
            found.append(x509.load_der_x509_certificate(der))
        except (ValueError, UnsupportedAlgorithm):
            what = f"Certificate {number} of {path} is damaged: it is base64, but no certificate."
            raise BadInputError(what, "Copy the file again from where it came from.") from None
    return found


def why_no_ca(path: Path) -> tuple[str, str]:
    """What is wrong with a file that should hold a CA's certificate, and what helps; both empty where nothing is."""
    try:
        certificates_of(path)
    except BadInputError as error:
        return error.what, error.hint
    return "", ""


def signs(ca_file: Path, certificate_file: Path) -> bool:
    """Whether the CA in one file has signed the chain in the other; not, where either can't be read."""
    try:
        authorities, chain = certificates_of(ca_file), _chain(certificates_of(certificate_file))
    except BadInputError:
        return False
    return _leads_to(chain, authorities)


def _is_certificate(path: Path) -> bool:
    return not any(why_no_ca(path))


def _without_trust(der: bytes) -> bytes:
    """The certificate of OpenSSL's TRUSTED CERTIFICATE, which has settings behind it."""
    if der[1:2] >= b"\x80":
        size = der[1] & 0x7F
        return der[: 2 + size + int.from_bytes(der[2 : 2 + size], "big")]
    return der


def _key(path: Path) -> tuple[str, bytes]:
    """The private key as PEM, and its public half.  OpenSSL takes the first one of a file."""
    block = next(block for block in pemfiles.read(path, pemfiles.KEY) if block.label in pemfiles.KEYS)
    name = shlex.quote(str(path))
    if block.encrypted:
        new = shlex.quote(str(path.with_name(f"{path.stem}-plain.pem")))
        what = f"The private key {path} is encrypted, and nobody is there to type its passphrase when nginx starts."
        raise BadInputError(what, f"(umask 077; openssl pkey -in {name} -out {new}), and name that.")
    try:
        key = load_der_private_key(block.der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        hint = f"`openssl pkey -in {name} -noout -check` looks closer; copy the file again from where it came from."
        raise BadInputError(f"The private key {path} is damaged or of an unknown kind.", hint) from None
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), public


def _public(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _belongs(given: Sequence[x509.Certificate], public: bytes, certificate_file: Path, key_file: Path) -> None:
    places = [number for number, certificate in enumerate(given, 1) if _public(certificate) == public]
    cert, key = shlex.quote(str(certificate_file)), shlex.quote(str(key_file))
    if not places:
        raise BadInputError(
            "The private key is not the one of the certificate.",
            "Give the key that the certificate was asked for with. These two have to print the same: "
            f"openssl x509 -in {cert} -noout -pubkey; openssl pkey -in {key} -pubout",
        )
    if places[0] > 1:
        new = shlex.quote(str(certificate_file.with_name(f"{certificate_file.stem}-ordered.pem")))
        turned = "perl -0777 -ne 'print reverse /-----BEGIN CERT.*?-----END CERT[^\\n]*\\n/gs'"
        raise BadInputError(
            f"The chain in {certificate_file} is in the wrong order: the server's own certificate is number {places[0]}"
            " and has to be the first, followed by the one that signed it.",
            f"{turned} {cert} > {new}   (that turns it around), and name that.",
        )


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _chain(given: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The certificates from the server's own upwards, each once; what is not of this line comes last."""
    chain, rest = [given[0]], list(dict.fromkeys(given[1:]))
    while above := next((one for one in rest if one not in chain and _signed_by(chain[-1], one)), None):
        chain.append(above)
    return chain + [one for one in rest if one not in chain]


def _line(chain: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The part of a sorted chain in which each was signed by the next."""
    line = [chain[0]]
    for one in chain[1:]:
        if not _signed_by(line[-1], one):
            break
        line.append(one)
    return line


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [f"DNS:{name}" for name in names.get_values_for_type(x509.DNSName)] + [
        f"IP:{address}" for address in names.get_values_for_type(x509.IPAddress)
    ]


def _covers(name: str, fqdn: str) -> bool:
    """Whether a certificate's name is for a host: in any case, a wildcard for one label."""
    kind, _, pattern = name.partition(":")
    pattern, host = pattern.rstrip(".").lower(), fqdn.rstrip(".").lower()
    first, _, above = host.partition(".")
    return kind == "DNS" and (pattern == host or (bool(first and above) and pattern == f"*.{above}"))


def _for_servers(leaf: x509.Certificate, fqdn: str) -> None:
    names = _names(leaf)
    if not any(_covers(name, fqdn) for name in names):
        common = [str(one.value) for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        what = f"The certificate is for {', '.join(names) or 'no name'}, not for {fqdn}."
        if any(_covers(f"DNS:{one}", fqdn) for one in common):
            what += " It has the name as its common name (CN) only, which programs no longer read."
        raise BadInputError(
            what,
            f"Get one that has DNS:{fqdn} as a subject alternative name, or set lab_fqdn to a name that it is for.",
        )
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(uses):
        raise BadInputError("The certificate is not one for a server.", "Ask your CA for one for TLS servers.")


def _strong(chain: Sequence[x509.Certificate]) -> None:
    """Raises BadInputError for what the server's OpenSSL would not load, or could not use."""
    for certificate in chain:
        try:
            key, signature = certificate.public_key(), certificate.signature_hash_algorithm
        except (ValueError, UnsupportedAlgorithm):
            continue
        weak = isinstance(key, dsa.DSAPublicKey) or (isinstance(key, rsa.RSAPublicKey) and key.key_size < LEAST_RSA)
        old = isinstance(signature, (hashes.SHA1, hashes.MD5)) and certificate.issuer != certificate.subject
        if weak or old:
            what = f"nginx refuses {_subject(certificate)}: its {'key' if weak else 'signature'} is too weak."
            raise BadInputError(what, f"Get one with an ECDSA key, or RSA of {LEAST_RSA} bits or more, and SHA-256.")
        if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, CURVES):
            what = f"No client takes {_subject(certificate)}: its key is on the curve {key.curve.name}, not of TLS."
            raise BadInputError(what, "Get one with a key on P-256 (prime256v1) or P-384, or an RSA key.")


def _is_valid(certificate: x509.Certificate, leaf: x509.Certificate, now: datetime) -> None:
    whose = "certificate" if certificate is leaf else f"chain's certificate {_subject(certificate)}"
    if certificate.not_valid_after_utc <= now:
        hint = "Get a new one" if certificate is leaf else "Get the CA's newer chain"
        raise BadInputError(
            f"The {whose} ended on {_shown(certificate)}.", f"{hint} and name its file in lab_certificate_file."
        )
    if certificate.not_valid_before_utc > now:
        raise BadInputError(
            f"The {whose} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC.",
            f"Wait until then; or, if this machine's clock is wrong (it says {now:%Y-%m-%d %H:%M} UTC), set it.",
        )


def _of_trust(chain: Sequence[x509.Certificate], ca_file: Path | None, file: Path) -> Iterator[tuple[str, str]]:
    """Warns where nobody can know the CA.  Raises BadInputError where the chain ends before one."""
    known = certificates_of(ca_file) if ca_file and ca_file.is_file() and _is_certificate(ca_file) else []
    if _leads_to(chain, known) or _leads_to(chain, _public_authorities()):
        return
    top = _line(chain)[-1]
    private = f"If a private CA has signed it, put that CA's certificate into {ca_file or 'private/<lab_name>/ca.pem'}."
    if top.issuer == top.subject:
        yield f"The certificate is of {_subject(top)}, a CA that is not publicly trusted.", private
        return
    try:
        access = top.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        places = [str(one.access_location.value) for one in access if one.access_method == _OID_ISSUERS]
    except (x509.ExtensionNotFound, ValueError):
        places = []
    where = shlex.quote(str(file))
    get = f"curl -s {shlex.quote(places[0])} | openssl x509 -inform DER >> {where}" if places else ""
    raise BadInputError(
        f"{file} has no certificate of {top.issuer.rfc4514_string()}, which signed {_subject(top)}: "
        "an intermediate certificate is missing.",
        f"{get or 'Append it to the file (your CA calls it chain, bundle or fullchain).'} {private}",
    )


def _leads_to(chain: Sequence[x509.Certificate], authorities: Iterable[x509.Certificate]) -> bool:
    """Whether one of the authorities is in the chain's line, or has signed a part of it."""
    line = _line(chain)
    return any(one == authority or _signed_by(one, authority) for authority in authorities for one in line)


def _public_authorities() -> list[x509.Certificate]:
    """The CAs that this machine's programs trust."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the serial numbers of some public CAs
        for der in context.get_ca_certs(binary_form=True):
            with contextlib.suppress(ValueError, UnsupportedAlgorithm):
                found.append(x509.load_der_x509_certificate(der))
    return found


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"number {certificate.serial_number:x}"


def _shown(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"

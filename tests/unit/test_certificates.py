"""Certificates as admins name them: taken in nginx's form, or told with what to do."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LAB
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12

from labtrack import certificates, preflight, secrets
from labtrack import lab as labs
from labtrack.doctor.result import Result, Status
from labtrack.errors import BadInputError
from labtrack.lab import Lab

NAME = LAB["lab_fqdn"]
NOW = datetime.now(timezone.utc)
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def signed(subject: str, public: Any, issuer: tuple[str, Any], *, names: tuple[str, ...] = (), ca: bool = False,
           begins: int = -40, days: int = 60, usage: Any = None) -> x509.Certificate:  # fmt: skip
    """A certificate that an issuer, given by name and key, has signed."""
    called = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in (subject, issuer[0])]
    builder = x509.CertificateBuilder().subject_name(called[0]).issuer_name(called[1]).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW + timedelta(days=begins)).not_valid_after(NOW + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer[1], hashes.SHA256())


def pem(*certificates_: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(PEM) for certificate in certificates_)


def key_pem(private: Any, form: Any = serialization.PrivateFormat.PKCS8, passphrase: bytes = b"") -> bytes:
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return private.private_bytes(PEM, form, how)


ROOT_KEY, MIDDLE_KEY, KEY = key(), key(), key()
ROOT = signed("A root", ROOT_KEY.public_key(), ("A root", ROOT_KEY), ca=True)
MIDDLE = signed("A middle", MIDDLE_KEY.public_key(), ("A root", ROOT_KEY), ca=True)
LEAF = signed(NAME, KEY.public_key(), ("A middle", MIDDLE_KEY), names=(NAME,))
CHAIN, PRIVATE = pem(LEAF, MIDDLE), key_pem(KEY)
PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
CSR = x509.CertificateSigningRequestBuilder().subject_name(LEAF.subject).sign(KEY, hashes.SHA256()).public_bytes(PEM)


def leaf(*names: str, subject: str = NAME, **more: Any) -> bytes:
    return pem(signed(subject, KEY.public_key(), ("A middle", MIDDLE_KEY), names=names, **more), MIDDLE)


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., certificates.Served]:
    """Judges two files with these contents, beside the CA."""

    def judge(certificate: bytes, private: bytes = PRIVATE, ca: bytes = pem(ROOT)) -> certificates.Served:
        files = [tmp_path / name for name in ("server.pem", "server.key", "ca.pem")]
        for file, data in zip(files, (certificate, private, ca)):
            file.write_bytes(data)
            file.chmod(0o600)
        return certificates.provided(files[0], files[1], NAME, files[2])

    return judge


TAKEN = {
    "as it should be": (CHAIN, PRIVATE),
    "line ends of Windows": (CHAIN.replace(b"\n", b"\r\n"), PRIVATE.replace(b"\n", b"\r\n")),
    "bag attributes around": (
        b"Bag Attributes\n  localKeyID: 1\nsubject=/CN=x\n" + CHAIN,
        b"Key Attributes:\n" + PRIVATE,
    ),
    "EC PARAMETERS before the key": (CHAIN, PARAMETERS + key_pem(KEY, serialization.PrivateFormat.TraditionalOpenSSL)),
    "both in one file": (CHAIN + PRIVATE, PRIVATE + CHAIN),
    "with the root": (pem(LEAF, MIDDLE, ROOT), PRIVATE),
    "the chain in another order": (pem(LEAF, ROOT, MIDDLE), PRIVATE),
    "one certificate twice": (pem(LEAF, MIDDLE, MIDDLE), PRIVATE),
    "no end of line at the end": (CHAIN.strip(), PRIVATE.strip()),
    "space at the ends of lines": (CHAIN.replace(b"\n", b"  \n"), PRIVATE),
    "a name in capitals": (leaf(NAME.upper()), PRIVATE),
    "a wildcard": (leaf("*.example.org"), PRIVATE),
    "one of many names": (leaf("www.example.org", NAME), PRIVATE),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_openssl_takes_is_taken_and_written_in_order(judged: Any, tmp_path: Path, case: str) -> None:
    served = judged(*TAKEN[case])
    assert served.warnings == ()
    (tmp_path / "served.pem").write_text(served.chain)
    (tmp_path / "served.key").write_text(served.key)
    (tmp_path / "root.pem").write_bytes(pem(ROOT))
    verify = [
        "openssl",
        "verify",
        "-CAfile",
        "root.pem",
        "-untrusted",
        "served.pem",
        "-verify_hostname",
        NAME,
        "served.pem",
    ]
    subprocess.run(verify, cwd=tmp_path, check=True, capture_output=True)
    assert len(certificates.certificates_of(tmp_path / "served.pem")) == (
        3 if ROOT.public_bytes(PEM) in TAKEN[case][0] else 2
    )
    import ssl

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "served.pem", tmp_path / "served.key")


BOM = b"\xef\xbb\xbf"
P12 = pkcs12.serialize_key_and_certificates(b"x", KEY, LEAF, [MIDDLE], serialization.NoEncryption())
P7 = pkcs7.serialize_certificates([LEAF, MIDDLE], PEM), pkcs7.serialize_certificates([LEAF, MIDDLE], DER)
OPENSSH = key_pem(KEY, serialization.PrivateFormat.OpenSSH)
BITCOINS = ec.generate_private_key(ec.SECP256K1())
WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505
CLIENT = x509.ExtendedKeyUsageOID.CLIENT_AUTH
OLD = serialization.PrivateFormat.TraditionalOpenSSL
KEY_DER = KEY.private_bytes(DER, OLD, serialization.NoEncryption())
SHORTENED = b"".join(line for number, line in enumerate(CHAIN.splitlines(True)) if number != 3)
REFUSED: dict[str, tuple[bytes, bytes, str, str]] = {
    "another key": (CHAIN, key_pem(key()), "The private key is not the one of the certificate", "openssl pkey -in"),
    "the files swapped": (PRIVATE, CHAIN, "The two files are swapped", "Exchange"),
    "twice the key": (PRIVATE, PRIVATE, "is a private key, and no certificate", "certificate"),
    "twice the certificate": (CHAIN, CHAIN, "is a certificate, and no private key", "key"),
    "a chain upside down": (pem(MIDDLE, LEAF), PRIVATE, "is number 2 and has to be the first", "perl -0777"),
    "no intermediate": (pem(LEAF), PRIVATE, "an intermediate certificate is missing", "fullchain"),
    "another intermediate": (pem(LEAF, ROOT), PRIVATE, "an intermediate certificate is missing", "private CA"),
    "glued": (CHAIN.replace(b"\n-----BEGIN", b"-----BEGIN"), PRIVATE, "two blocks on one line", "perl -pi"),
    "indented": (b"  " + CHAIN.replace(b"\n", b"\n  "), PRIVATE, "is indented", "perl -pi"),
    "indented by tabs": (CHAIN, b"\t" + PRIVATE.replace(b"\n", b"\n\t"), "is indented", "perl -pi"),
    "a byte order mark": (BOM + CHAIN, PRIVATE, "byte order mark", "perl -pi"),
    "a key with a byte order mark": (CHAIN, BOM + PRIVATE, "byte order mark", "perl -pi"),
    "line ends of an old Macintosh": (CHAIN.replace(b"\n", b"\r"), PRIVATE, "old Macintosh", "perl -pi"),
    "UTF-16": (CHAIN.decode().encode("utf-16"), PRIVATE, "UTF-16", "iconv -f UTF-16"),
    "DER": (LEAF.public_bytes(DER), PRIVATE, "is DER", "openssl x509 -inform DER"),
    "a key in DER": (CHAIN, KEY_DER, "is DER", "openssl pkey -inform DER"),
    "PKCS #12": (P12, PRIVATE, "PKCS #12", "openssl pkcs12 -in"),
    "PKCS #12 for the key": (CHAIN, P12, "PKCS #12", "-nocerts -nodes"),
    "PKCS #7": (P7[0], PRIVATE, "PKCS #7", "openssl pkcs7 -print_certs"),
    "PKCS #7 in DER": (P7[1], PRIVATE, "PKCS #7", "openssl pkcs7 -inform DER"),
    "base64 alone": (b"".join(pem(LEAF).splitlines()[1:-1]), PRIVATE, "without its -----BEGIN", "openssl base64 -d"),
    "a request": (CSR, PRIVATE, "a certificate request (CSR)", "CA"),
    "an encrypted key": (CHAIN, key_pem(KEY, passphrase=b"x"), "is encrypted", "openssl pkey -in"),
    "an encrypted key, the old way": (CHAIN, key_pem(KEY, OLD, b"x"), "is encrypted", "openssl pkey -in"),
    "OpenSSH's key": (CHAIN, OPENSSH, "OpenSSH's format", "ssh-keygen -p -m PKCS8"),
    "an empty file": (b"", PRIVATE, "is empty", "Name the file"),
    "blank lines": (CHAIN, b"\n\n", "is empty", "Name the file"),
    "a text": (b"to be done\n", PRIVATE, "there is no -----BEGIN line", "-----BEGIN CERTIFICATE-----"),
    "a cut file": (CHAIN[:-40], PRIVATE, "is cut", "again"),
    "a line changed": (CHAIN.replace(b"\nMII", b"\nM*I", 1), PRIVATE, "damaged", "again"),
    "a line missing": (SHORTENED, PRIVATE, "damaged", "again"),
    "another name": (leaf("elsewhere.example"), PRIVATE, f"is for DNS:elsewhere.example, not for {NAME}", NAME),
    "a wildcard of two levels": (leaf("*.org"), PRIVATE, "is for DNS:*.org, not for", "lab_fqdn"),
    "the wildcard's own name": (leaf("*.mlflow.example.org"), PRIVATE, "is for DNS:*.mlflow", "lab_fqdn"),
    "the name as CN alone": (leaf(), PRIVATE, "common name (CN) only", "subject alternative name"),
    "ended": (leaf(NAME, days=-1), PRIVATE, "The certificate ended on", "new one"),
    "not yet valid": (leaf(NAME, begins=1), PRIVATE, "is not valid before", "clock"),
    "for clients": (leaf(NAME, usage=CLIENT), PRIVATE, "not one for a server", "TLS servers"),
    "a short RSA key": (
        pem(signed(NAME, WEAK.public_key(), ("A middle", MIDDLE_KEY), names=(NAME,)), MIDDLE),
        key_pem(WEAK), "its key is too weak", "ECDSA",
    ),
    "a curve that TLS does not have": (
        pem(signed(NAME, BITCOINS.public_key(), ("A middle", MIDDLE_KEY), names=(NAME,)), MIDDLE),
        key_pem(BITCOINS), "on the curve secp256k1", "P-256",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_served_is_told_with_what_to_do(judged: Any, case: str) -> None:
    certificate, private, what, hint = REFUSED[case]
    with pytest.raises(BadInputError) as caught:
        judged(certificate, private)
    assert what in caught.value.what and hint in caught.value.hint, str(caught.value)


@pytest.mark.parametrize(
    "case", ["glued", "indented", "a byte order mark", "UTF-16", "DER", "PKCS #12", "PKCS #7", "PKCS #7 in DER",
             "base64 alone", "a chain upside down", "line ends of an old Macintosh"],
)  # fmt: skip
def test_the_command_that_is_told_puts_the_certificate_right(judged: Any, tmp_path: Path, case: str) -> None:
    judge = partial(judged, *REFUSED[case][:2], pem(ROOT) + pem(MIDDLE))
    for _ in range(2):  # what PKCS #7 has in it may be in the wrong order, too
        with pytest.raises(BadInputError) as caught:
            judge()
        command, file = caught.value.hint.split("   (")[0], tmp_path / "server.pem"
        subprocess.run(["sh", "-ec", f"{command}{' -passin pass:' * ('pkcs12' in command)}"], check=True)
        # each command adds to the name; the time of two files that are made at once is the same
        file = max(tmp_path.glob("server-*.pem"), key=lambda new: len(new.name), default=file)
        judge = partial(certificates.provided, file, tmp_path / "server.key", NAME, tmp_path / "ca.pem")
        with contextlib.suppress(BadInputError):
            assert judge().names == (f"DNS:{NAME}",)
            return
    pytest.fail("the commands lead nowhere")


def test_a_folder_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is a folder"):
        certificates.provided(tmp_path, tmp_path, NAME)
    with pytest.raises(BadInputError, match="There is no file"):
        certificates.provided(tmp_path / "no", tmp_path, NAME)


def test_what_will_be_trouble_is_noted(judged: Any, tmp_path: Path) -> None:
    (soon,) = judged(leaf(NAME, days=10)).warnings
    assert "ends in 9 days" in soon[0] and "deploy.yml" in soon[1]
    (private,) = judged(pem(LEAF, MIDDLE, ROOT), ca=b"").warnings
    assert "A root, a CA that is not publicly trusted" in private[0] and "ca.pem" in private[1]
    (tmp_path / "server.key").chmod(0o644)
    (modes, _) = certificates.provided(tmp_path / "server.pem", tmp_path / "server.key", NAME).warnings[::-1]
    assert "Others can read" in modes[0]


def provided(lab_dir: Path, certificate: bytes, private: bytes = PRIVATE, **more: str) -> Lab:
    """The lab with these files."""
    files = {"lab_certificate_file": "server.pem", "lab_certificate_key_file": "server.key"}
    for name, data in zip(files.values(), (certificate, private)):
        (lab_dir.parents[1] / name).write_bytes(data)
        (lab_dir.parents[1] / name).chmod(0o600)
    labs.lab_yml(lab_dir).write_text(
        yaml.safe_dump({**LAB, "lab_certificate": "provided", **files, **more}, sort_keys=False)
    )
    return labs.load(lab_dir)


def rows(lab_dir: Path) -> dict[str, Result]:
    return {row.check: row for row in preflight.check(lab_dir)}


def test_preflight_reads_the_files_and_names_the_line(lab_dir: Path) -> None:
    lab = provided(lab_dir, CHAIN)
    lab.ca_file.write_bytes(pem(ROOT))
    found = rows(lab_dir)["certificate"]
    assert found.status is Status.OK and f"DNS:{NAME}" in found.seen
    provided(lab_dir, pem(MIDDLE, LEAF))
    line = labs.lab_yml(lab_dir).read_text().splitlines().index("lab_certificate_file: server.pem") + 1
    assert rows(lab_dir)[f"lab.yml:{line}"].status is Status.FAILED


@pytest.mark.parametrize("data", [b"", LEAF.public_bytes(DER), b"nothing\n", CSR])
def test_preflight_reads_the_stores_ca(lab_dir: Path, data: bytes) -> None:
    (lab_dir.parents[1] / "ca.crt").write_bytes(data)
    labs.lab_yml(lab_dir).write_text(yaml.safe_dump({**LAB, "lab_s3_ca_file": "ca.crt"}))
    (found,) = (row for name, row in rows(lab_dir).items() if name.startswith("lab.yml:"))
    assert found.status is Status.FAILED and "lab_s3_ca_file" in found.seen


def test_preflight_wants_both_halves_of_an_external_account_binding(lab_dir: Path) -> None:
    settings = {**LAB, "lab_certificate": "acme", "lab_acme_eab_kid": "kid-1"}
    labs.lab_yml(lab_dir).write_text(yaml.safe_dump(settings))
    lab = labs.load(lab_dir)
    secrets.add(lab, {"secret_x": "y"})
    told = [row for row in preflight.check(lab_dir) if row.check == "secrets.yml" and row.status is Status.FAILED]
    assert [row for row in told if secrets.EAB_KEY in row.hint]
    secrets.add(lab, {secrets.EAB_KEY: "z"})
    assert rows(lab_dir)["secrets.yml"].status is Status.OK


def test_a_ca_left_by_selfsigned_is_not_the_one_of_a_provided_certificate(lab_dir: Path) -> None:
    lab = provided(lab_dir, CHAIN)
    assert lab.server_ca is None, "the fixture's CA has signed nothing"
    other = signed("labtrack CA", ROOT_KEY.public_key(), ("labtrack CA", ROOT_KEY), ca=True)
    lab.ca_file.write_bytes(pem(other))
    assert lab.server_ca is None
    lab.ca_file.write_bytes(pem(ROOT))
    assert lab.server_ca == lab.ca_file


class TestOwnCa:
    """The CA of `selfsigned`, which is kept with the lab's secrets."""

    @pytest.mark.parametrize("form", [OLD, serialization.PrivateFormat.PKCS8])
    def test_kept_and_handed_out_again(self, lab: Lab, form: Any) -> None:
        both = key_pem(ROOT_KEY, form) + pem(ROOT)
        assert secrets.keep_ca(lab, both.decode())
        assert secrets.read(lab)[secrets.CA] == both.decode()
        assert lab.ca_file.read_bytes() == pem(ROOT)
        assert not secrets.keep_ca(lab, both.decode())
        lab.ca_file.unlink()
        secrets.renew(lab, ["secret_verify_password"])
        assert secrets.write_ca(lab) and lab.ca_file.read_bytes() == pem(ROOT)
        assert not secrets.write_ca(lab)

    @pytest.mark.parametrize("text", ["", pem(ROOT).decode(), PRIVATE.decode()])
    def test_half_of_it_is_refused(self, lab: Lab, text: str) -> None:
        with pytest.raises(BadInputError):
            secrets.keep_ca(lab, text)
        assert secrets.read(lab) == {}

    def test_an_admins_own_ca_is_left_alone(self, lab_dir: Path) -> None:
        lab = provided(lab_dir, CHAIN)
        secrets.keep_ca(lab, (PRIVATE + pem(ROOT)).decode())
        assert "labCA" in lab.ca_file.read_text()

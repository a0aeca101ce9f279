"""Known secrets in texts, in every encoding, whole and cut by lines."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaks import ENCODINGS, HEAD, cut_in_two, journal, wrapped

from labtrack.run import encodings
from labtrack.run.masking import MASK, mask_report

SECRETS = [
    "kAZ8s9dLq2mX0pW7", "p/w+with=signs&%41", "it's \"quoted\" \\ back", "größe-Ünder-ß-żółw", "emoji-\U0001f511-key",
    "with blanks in it", "https://hooks.example.org/T0/B1/x?token=1",
]  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_in_each_encoding(secret: str, encoding: str) -> None:
    written = ENCODINGS[encoding](secret)
    found = encodings.cut(f"before {written} after\nkept", [secret], MASK)
    assert re.sub(r"[\\\"']*\*\*\*[\\\"']*", MASK, found) == f"before {MASK} after\nkept", "without the quotes"
    for text in (f"x={written}", journal(written), wrapped(written)):
        found = encodings.cut(text, [secret], MASK)
        assert written not in found and MASK in found
        for part in cut_in_two(written):
            assert part not in found, found


def test_what_is_around_a_secret_stays() -> None:
    found = encodings.cut(journal("kAZ8s9dLq2mX0pW7"), ["kAZ8s9dLq2mX0pW7"], MASK)
    assert found == journal("0123456789abcdef").replace("01234567", MASK).replace("89abcdef", MASK)
    assert encodings.cut("nothing here\n", ["kAZ8s9dLq2mX0pW7"], MASK) == "nothing here\n"


@given(
    secret=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=5, max_size=40),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    before=st.text("abc \n:{}", max_size=12),
    after=st.text("xyz \n,;", max_size=12),
)
def test_any_secret_is_found(secret: str, encoding: str, before: str, after: str) -> None:
    if len("".join(secret.split())) < 5 or len(set(secret)) < 3:
        return
    written = ENCODINGS[encoding](secret)
    assert written not in encodings.cut(f"{before} {written} {after}", [secret], MASK)


def test_a_key_is_found_by_its_lines() -> None:
    from labtrack.bundle.known import _parts

    lines = ["-----BEGIN PRIVATE KEY-----", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC", "BKcwggSjAgEAAoIBAQC7"]
    key = "\n".join([*lines, "-----END PRIVATE KEY-----", ""])
    text = "".join(f"{HEAD.format(1, 'certbot', 3)}{line}\n" for line in lines)
    found = encodings.cut(text, [key, *_parts(key)], MASK)
    assert not any(line in found for line in lines[1:3])
    assert lines[1] not in mask_report(text.replace("MII", "MIJ"), []), "a key that nobody knew"


@pytest.mark.parametrize(
    "unknown",
    [
        'Authorization: Bearer Qm9vdGggdG9rZW4x', "Authorization: Basic YWRhOnNlY3JldA==", "https://ada:Qm9vdGgx@host/x",
        "GET /b/o?X-Amz-Signature=Qm9vdGgx&X-Amz-Date=1", '{"secret_key": "Qm9vdGgx"}', "{'password': 'Qm9vdGgx'}",
        "MLFLOW_TRACKING_PASSWORD=Qm9vdGgx", "--password Qm9vdGgx",
    ],
)  # fmt: skip
def test_a_secret_that_nobody_knows_is_found_by_its_name(unknown: str) -> None:
    found = mask_report(f"log: {unknown}\n", [])
    assert "Qm9vdGg" not in found and "YWRhOnNl" not in found and MASK in found


def test_names_of_settings_stay() -> None:
    text = '{"lab_key_pair": "ada-laptop", "lab_key_grace": "7d", "secret_file": "private/x"}\n'
    assert mask_report(text, []) == text


def test_a_large_log_takes_seconds() -> None:
    line = "{}INFO 127.0.0.1 - 'POST /api/2.0/mlflow/runs/log-metric?x=%20y HTTP/1.1' 200 \\n OK\n"
    text = "".join(line.format(HEAD.format(number % 60, "mlflow", number % 9)) for number in range(10_000))
    start = time.process_time()
    encodings.cut(text, [f"kAZ8s9dLq2mX0p{number}" for number in range(100)], MASK)
    assert time.process_time() - start < 20

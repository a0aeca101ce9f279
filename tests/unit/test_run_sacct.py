"""sacct's answers are read, whatever stands in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labtrack.run import sacct, verdict

FIELDS = ("JobID", "State", "ExitCode")


@pytest.mark.parametrize(
    ("text", "state", "by"),
    [
        ("COMPLETED", "COMPLETED", ""),
        ("CANCELLED by 1000", "CANCELLED", "1000"),
        ("CANCELLED+", "CANCELLED", ""),
        ("OUT_OF_ME+", "OUT_OF_MEMORY", ""),
        ("NODE_FAIL", "NODE_FAIL", ""),
        ("COMPL+", "COMPL", ""),  # COMPLETED and COMPLETING
        ("SOMETHING_NEW", "SOMETHING_NEW", ""),
        ("", "", ""),
        ("12:30", "", ""),
    ],
)
def test_state_as_sacct_prints_it(text: str, state: str, by: str) -> None:
    assert sacct.read_state(text) == (state, by)


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    for line in (text, f"5|{text}|0:0", f"{text}|FAILED|1:0"):
        accounts = sacct.parse(line, FIELDS)
        for records in accounts.records.values():
            verdict.judge(records, 0, "batch")


def test_records_of_arrays_het_jobs_and_steps() -> None:
    text = "7_3|FAILED|1:0\n7_3.batch|FAILED|1:0\n7_3.0|COMPLETED|0:0\n8+1|TIMEOUT|0:0\n9_[4-7]|PENDING|0:0\n"
    found = sacct.parse(text, FIELDS)
    assert {name: [one.step for one in many] for name, many in found.records.items()} == {
        "7_3": ["", "batch", "0"], "8+1": [""], "9_[4-7]": [""],
    }  # fmt: skip
    assert found.damaged == []


@pytest.mark.parametrize("line", ["5|FAILED", "5", "x|FAILED|1:0", "5||0:0", "5|FAILED|1:0|more"])
def test_a_line_that_is_cut_or_strange_is_damaged(line: str) -> None:
    found = sacct.parse(f"{line}\n6|COMPLETED|0:0\n", FIELDS)
    assert found.damaged == [line] and list(found.records) == ["6"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1234K", 1234 * 1024),
        ("2.5G", 2684354560),
        ("4Gn", 2**32),
        ("4000Mc", 4000 * 2**20),
        ("", None),
        ("x", None),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert sacct.bytes_of(text) == size


def test_gpus_of_kinds_are_added() -> None:
    assert sacct.resource("cpu=4,gres/gpu:a100=2,gres/gpu:h100=1", "gres/gpu") == "3"
    assert sacct.resource("cpu=4,gres/gpu=2,gres/gpu:a100=2", "gres/gpu") == "2"


def test_times() -> None:
    assert sacct.time_of("1760000000") == 1760000000000
    assert sacct.time_of("2025-10-09T08:53:20") is not None
    assert [sacct.time_of(one) for one in ("Unknown", "None", "", "0")] == [None] * 4

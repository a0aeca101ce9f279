"""The names and numbers that go to the server in place of those that it cannot keep."""

from __future__ import annotations

import json
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from labtrack.stores import MetricPoint
from labtrack.sync import limits

# the hard characters, among others
PARTS = st.text(st.sampled_from("ab~0123456789%#;?\t\r\n. é+"), min_size=1, max_size=8).filter(
    lambda one: one not in (".", "..")
)
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
PATHS = st.one_of(PATHS, PATHS.map(limits.fit_path))  # a name may look like one that was made


@given(PATHS)
def test_fit_path_gives_what_the_server_keeps(path: str) -> None:
    sent = limits.fit_path(path)
    assert unquote(sent) == sent, "it decodes again and again"
    assert not set(sent) & set("#\t\r\n\0")
    assert not any(part.endswith((";", "?")) or part in ("", ".", "..") for part in sent.split("/"))
    assert sent.count("/") == path.count("/")


@given(st.sets(PATHS, max_size=12))
def test_fit_path_never_gives_one_for_two(paths: set[str]) -> None:
    assert len({limits.fit_path(one) for one in paths}) == len(paths)


def test_fit_path_leaves_what_is_kept() -> None:
    for name in ("a b.txt", "100%.txt", "a?b.txt", "épochs=0/π.ckpt", "C:\\x", "~tmp~", ".DS_Store", "%zz"):
        assert limits.fit_path(name) == name


def test_fit_path_names_stay_as_short_as_file_systems_have_them() -> None:
    assert len(limits.fit_path("é" * 120 + "#x.txt").encode()) <= 255


def test_settle_looks_at_all_points_where_some_were_changed() -> None:
    points = [MetricPoint("a", 1.0, 1_700_000_000_000, step, (1_700_000_000_000, step / 2)) for step in (1, 2, 3)]
    fit = limits.fit({}, {})
    fit.point(points[2])
    fit.settle(lambda: points)
    assert json.loads(fit.document())["steps"]["a"]["value"] == [[1, 0.5], [2, 1.0], [3, 1.5]]
    again = limits.fit({}, {})
    again.settle(lambda: points, again=True)
    assert again.document() == fit.document() and again.cuts == fit.cuts


def test_what_is_no_json_is_kept_as_text() -> None:
    fit = limits.fit({}, {})
    for recorded in (b"\x01\x02\x03", float("nan"), "abc", None):
        fit.point(MetricPoint("a", 1.0, 0, 0, (0, recorded)))
    fit.settle()
    assert [one[1] for one in json.loads(fit.document())["steps"]["a"]["value"]] == ["0x010203", "nan", "abc", None]

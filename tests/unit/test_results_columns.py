"""The grammar of columns, and what is done with values over seeds."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_made import Recorded, seeded

from labtrack.analysis import columns, statistics
from labtrack.analysis.board import Asked, leaderboard, smallest_first
from labtrack.analysis.choice import choice
from labtrack.analysis.columns import Column, parse, parse_list, quoted
from labtrack.analysis.groups import over_seeds
from labtrack.analysis.pivot import pivot
from labtrack.analysis.table import Marked, Spread, cell, number, written
from labtrack.errors import BadInputError


class TestGrammar:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("f1", Column("", "f1", "f1")),
            ("max:f1", Column("metrics", "f1", "max:f1", "max")),
            ("MIN:val_loss", Column("metrics", "val_loss", "MIN:val_loss", "min")),
            ("val/loss", Column("", "val/loss", "val/loss")),
            ("train.loss-x", Column("", "train.loss-x", "train.loss-x")),
            ("metrics.f1", Column("metrics", "f1", "metrics.f1")),
            ("mean:metrics.f1", Column("metrics", "f1", "mean:metrics.f1", "mean")),
            ("f1@min:val_loss", Column("metrics", "f1", "f1@min:val_loss", at=("min", "val_loss"))),
            ("step@max:f1", Column("metrics", "step", "step@max:f1", at=("max", "f1"), step=True)),
            ("step", Column("", "step", "step")),
            ("params.lr", Column("params", "lr", "params.lr")),
            ("params.opt.lr", Column("params", "opt.lr", "params.opt.lr")),
            ("tags.mlflow.user", Column("tags", "mlflow.user", "tags.mlflow.user")),
            ("attributes.duration", Column("attr", "duration", "attributes.duration")),
            ('max:"val loss"', Column("metrics", "val loss", 'max:"val loss"', "max")),
            ('"a:b@c,d"', Column("", "a:b@c,d", "a:b@c,d")),
            ('`say "x"`', Column("", 'say "x"', '`say "x"`'.strip("`"))),
            ('"say ""x"""', Column("", 'say "x"', 'say "x"')),
            ('params."my lr"', Column("params", "my lr", 'params."my lr"')),
            ('"params.lr"', Column("", "params.lr", "params.lr")),
            ('f1@max:"val f1"', Column("metrics", "f1", 'f1@max:"val f1"', at=("max", "val f1"))),
            ("max:f1 as best", Column("metrics", "f1", "best", "max")),
            ("f1 AS 'the best one'", Column("", "f1", "the best one")),
            (" f1  as  two words ", Column("", "f1", "two words")),
            ("täglich", Column("", "täglich", "täglich")),
        ],
    )
    def test_is_read(self, text: str, expected: Column) -> None:
        assert parse(text) == expected

    @given(st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text))
    def test_every_name_can_be_quoted(self, name: str) -> None:
        for before, kind in (("max:", "metrics"), ("params.", "params"), ("tags.", "tags")):
            text = '"' + name.replace('"', '""') + '"'
            assert (parse(before + text).kind, parse(before + text).name) == (kind, name)
        # a name in front of which something stands is one only in quotes
        if not name.lower().startswith(tuple(f"{one}." for one in columns._KINDS)):
            assert parse(f"metrics.{quoted(name)}" if quoted(name) != name else name).name == name

    def test_a_list_has_commas_between(self) -> None:
        found = parse_list('f1, "a,b" as x ,params.lr', "max:f1")
        assert [one.label for one in found] == ["f1", "x", "params.lr", "max:f1"]

    @pytest.mark.parametrize(
        "text", ["", " ", "a b", "f1,", ",f1", "best:f1", "f1@last:x", "max:", "f1 as", '"f1', "a@b"]
    )
    def test_what_cannot_be_read_is_shown(self, text: str) -> None:
        with pytest.raises(BadInputError, match="can't be read from"):
            parse_list(text)

    def test_what_is_needed_of_the_metrics(self) -> None:
        one = parse("f1@min:val_loss")
        assert one.keys == {"f1", "val_loss"} and parse("step@max:f1").keys == {"f1"}
        assert parse("params.lr").keys == set() and parse("params.lr").parts == set()


class TestResolved:
    """A bare name is a metric, else what the runs have of that name."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        made = Recorded(tmp_path / "mlflow.db")
        made.run("a", params={"lr": "0.1", "f1": "no", "x y": "1"}, tags={"dataset": "d", "lr": "tag"},
                 metrics={"f1": [0.5], "val loss": [1.0, 0.2], "a:b": [3.0]})  # fmt: skip
        return str(made.path)

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("f1", 0.5), ("lr", "tag"), ("params.lr", "0.1"), ("params.f1", "no"), ('params."x y"', "1"), ("name", "a"),
            ('min:"val loss"', 0.2), ('f1@max:"val loss"', 0.5), ('step@min:"val loss"', 1), ('"a:b"', 3.0),
            ("attr.duration", 30.0), ("count:f1", 1), ('first:"val loss"', 1.0), ('mean:"val loss"', 0.6),
            ('last:"val loss"', 0.2), ("attr.status", "FINISHED"), ("experiment", "Default"),
            ('f1@min:"val loss"', None),
        ],
    )  # fmt: skip
    def test_value(self, text: str, value: object, source: str) -> None:
        table, _ = leaderboard(Asked([source]), "f1", choice=choice(only=[text]))
        assert table.rows == [[value]]

    def test_patterns_give_what_matches(self, source: str) -> None:
        table, _ = leaderboard(Asked([source]), "f1", choice=choice(only=["params.*", "tags.*", "max:*"]))
        expected = [
            "params.f1",
            "params.lr",
            "params.x y",
            "tags.dataset",
            "tags.lr",
            "max:a:b",
            "max:f1",
            "max:val loss",
        ]
        assert table.columns == expected
        less = choice(only=["params.*", "tags.*"], keep="lr|data", drop="^tags.d")
        assert leaderboard(Asked([source]), "f1", choice=less)[0].columns == ["params.lr", "tags.lr"]


@pytest.mark.parametrize(
    ("metric", "said", "smallest", "told"),
    [
        ("f1", None, False, False), ("val_loss", None, True, True), ("test/error", None, True, True),
        ("RMSE.val", None, True, True), ("val_loss", "max", False, False), ("f1", "min", True, False),
        ("max:val_loss", None, False, False), ("min:f1", None, True, False), ("f1@min:val_loss", None, False, False),
        ("glossary", None, True, True), ("smaed", None, False, False),
    ],
)  # fmt: skip
def test_the_direction_is_never_guessed_in_silence(metric: str, said: str | None, smallest: bool, told: bool) -> None:
    found, note = smallest_first(parse(metric), said)
    assert (found, bool(note)) == (smallest, told)


class TestSpread:
    def test_one_value_has_none(self) -> None:
        assert statistics.spread([0.5]) == Spread(0.5, 1)
        assert cell(statistics.spread([0.5])) == "0.500000 (1)"

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("std", math.sqrt(2.5)), ("sem", math.sqrt(0.5)), ("minmax", (1.0, 5.0)), ("iqr", (2.0, 4.0)),
            ("ci95", (1.0367568385224, 4.9632431614775)),
        ],
    )  # fmt: skip
    def test_kinds(self, kind: str, expected: object) -> None:
        if kind == "ci95":
            pytest.importorskip("scipy")
        found = statistics.spread([5.0, 1, 2, 3, 4], kind)
        assert (found.value, found.n) == (3.0, 5) and found.spread == pytest.approx(expected)

    def test_nan_is_not_hidden(self) -> None:
        found = statistics.spread([1.0, math.nan, 3.0])
        assert math.isnan(found.value) and (found.n, found.spread) == (3, None)
        assert cell(found) == "nan (3)"

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
    def test_holm_is_monotonous_and_never_smaller(self, values: list[float]) -> None:
        found = statistics.holm(values)
        pairs = sorted(zip(values, found))
        assert all(new >= old for old, new in pairs) and max(found) <= 1
        assert [new for _, new in pairs] == sorted(new for _, new in pairs)
        assert found[values.index(min(values))] == min(1.0, min(values) * len(values))

    def test_holm_by_hand(self) -> None:
        assert statistics.holm([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]


class TestAgainst:
    """scipy is the witness of its own numbers."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        made = Recorded(tmp_path / "mlflow.db")
        values = {"base": [0.80, 0.82, 0.81, 0.83], "better": [0.85, 0.88, 0.85, 0.89], "few": [0.9, 0.7]}
        for model, some in values.items():
            for seed, value in enumerate(some):
                made.run(params={"model": model, "seed": seed}, metrics={"f1": [value]})
        for seed, value in enumerate([0.84, 0.86, 0.87], 10):
            made.run(params={"model": "elsewhere", "seed": seed}, metrics={"f1": [value]})
        return str(made.path)

    def test_paired_where_the_seeds_are_the_same_else_welch(self, source: str) -> None:
        stats = pytest.importorskip("scipy.stats")
        table, _ = over_seeds(Asked([source]), "f1", vs="base")
        rows = {row[0]: dict(zip(table.columns, row)) for row in table.rows}
        paired = stats.ttest_rel([0.85, 0.88, 0.85, 0.89], [0.80, 0.82, 0.81, 0.83])
        welch = stats.ttest_ind([0.84, 0.86, 0.87], [0.80, 0.82, 0.81, 0.83], equal_var=False)
        one, other = sorted([paired.pvalue, welch.pvalue])
        assert sorted([rows["better"]["p"], rows["elsewhere"]["p"]]) == pytest.approx(
            sorted([one * 2, max(other, one * 2)])
        )
        assert (rows["better"]["test"], rows["better"]["n"]) == ("paired", "4")
        assert (rows["elsewhere"]["test"], rows["elsewhere"]["n"]) == ("Welch", "3 vs 4")
        assert rows["better"]["difference"] == pytest.approx(0.0525)
        low, high = paired.confidence_interval()
        assert (rows["better"]["ci95_low"], rows["better"]["ci95_high"]) == pytest.approx((low, high))
        assert rows["base"]["test"] == "baseline" and rows["base"]["p"] is None
        assert rows["few"]["test"] == "Welch: n < 3: nothing can be said" and rows["few"]["p"] is None

    def test_a_baseline_of_few_runs_is_refused(self, source: str) -> None:
        pytest.importorskip("scipy")
        with pytest.raises(BadInputError, match="2 runs, and below 3"):
            over_seeds(Asked([source]), "f1", vs="params.model=few")

    def test_without_scipy_it_is_said_what_to_install(self, source: str, tmp_path: Path) -> None:
        script = (
            "import sys; sys.modules['scipy'] = None; import runpy; runpy.run_module('labtrack', run_name='__main__')"
        )
        for more in (["--vs", "base"], ["--spread", "ci95"]):
            words = [
                sys.executable,
                "-c",
                script,
                "leaderboard",
                "-s",
                source,
                "--metric",
                "f1",
                "--over",
                "seed",
                *more,
            ]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 2 and "pip install 'labtrack[stats]'" in done.stderr, done.stderr
        done = subprocess.run(words[:-2], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "(4)" in done.stdout


class TestGroups:
    def test_a_sweep_without_seeds_is_not_taken_together(self, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        for lr in ("0.1", "0.01", "0.001"):
            made.run(params={"lr": lr, "seed": "1"}, metrics={"f1": [0.5]})
        table, _ = over_seeds(Asked([str(made.path)]), "f1")
        assert len(table.rows) == 3 and table.notes == []

    def test_n_counts_the_runs_that_have_the_value(self, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        for seed in range(4):
            made.run(params={"seed": seed, "lr": "1"}, metrics={"f1": [0.5 + seed]} if seed else {"other": [1.0]})
        table, _ = over_seeds(Asked([str(made.path)]), "f1")
        assert [row[-1].n for row in table.rows] == [3] and table.left_out == {"without f1": 1}

    @pytest.mark.parametrize("name", ["seed", "random_seed", "random_state", "trial"])
    def test_the_usual_names_of_seeds(self, name: str, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        for seed in range(3):
            made.run(params={name: seed, "lr": "1"}, metrics={"f1": [0.5]})
        assert len(over_seeds(Asked([str(made.path)]), "f1")[0].rows) == 1
        assert len(over_seeds(Asked([str(made.path)]), "f1", "lr")[0].rows) == 3

    def test_a_seed_that_is_there_twice_is_told(self, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        for seed in (1, 1, 2):
            made.run(params={"seed": seed}, metrics={"f1": [0.5]})
        table, _ = over_seeds(Asked([str(made.path)]), "f1")
        assert "a seed is there twice" in table.notes[0] and table.rows[0][-1].n == 3

    def test_datasets_in_tags_are_kept_apart(self, tmp_path: Path) -> None:
        source = seeded(tmp_path / "mlflow.db").path
        table, _ = over_seeds(Asked([str(source)]), "max:f1")
        assert table.columns == ["dataset", "params.model", "value"] and len(table.rows) == 5


class TestPivot:
    def test_the_best_is_marked_and_what_is_within_its_spread(self, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        for model, middle in (("a", 0.90), ("b", 0.895), ("c", 0.5)):
            for seed in range(3):
                made.run(params={"model": model, "seed": seed}, tags={"dataset": "x_1"},
                         metrics={"f1": [middle + 0.01 * (seed - 1)]})  # fmt: skip
        asked = Asked([str(made.path)])
        table, _ = pivot(asked, parse_list("params.model"), parse_list("tags.dataset"), "f1", "seed")
        assert [(row[1].best, row[1].tied) for row in table.rows] == [(True, False), (False, True), (False, False)]
        latex = written(table, "latex", 3)
        assert "\\textbf{0.900 $\\pm$ 0.010 (3)} \\\\" in latex and "0.895 $\\pm$ 0.010 (3)$^\\dagger$" in latex
        assert "x\\_1" in latex and latex.count("\\midrule") == 1
        assert "**0.900 ± 0.010 (3)**" in written(table, "md", 3)
        lowest, _ = pivot(asked, parse_list("params.model"), (), "f1", "seed", direction="min")
        assert [row[1].best for row in lowest.rows] == [False, False, True]

    def test_single_runs_have_no_spread_and_empty_cells_are_missing(self, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        for model, size, value in (("a", 10, 0.9), ("b", 9, 0.8), ("b", 10, 0.7)):
            made.run(params={"model": model, "size": size}, metrics={"f1": [value]})
        table, _ = pivot(Asked([str(made.path)]), parse_list("params.model"), parse_list("params.size"), "f1")
        assert table.columns == ["params.model", "9", "10"] and table.rows == [["a", None, 0.9], ["b", 0.8, 0.7]]
        assert isinstance(table.rows[0][2], Marked) and table.rows[0][2].best and table.notes == []

    def test_cells_that_mix_configurations_are_told(self, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        for lr in ("1", "2"):
            for seed in range(2):
                made.run(params={"model": "a", "lr": lr, "seed": seed}, metrics={"f1": [0.5]})
        table, _ = pivot(Asked([str(made.path)]), parse_list("params.model"), (), "f1", "seed")
        assert "differ in more than seed: a (params.lr)" in table.notes[0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, "0.500000"), (3, "3"), (1e-9, "1e-09"), (0.0, "0.000000"), (-1.5e-7, "-1.5e-07"), (math.nan, "nan"),
        (math.inf, "inf"), (-math.inf, "-inf"), (123456.7, "123456.700000"), (1e20, "1e+20"), (-0.0, "-0.000000"),
    ],
)  # fmt: skip
def test_a_number_for_a_person(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_largest_number_of_mlflows_tables_is_shown_as_inf(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    made.run(metrics={"f1": [1.7976931348623157e308]})
    table, _ = leaderboard(Asked([str(made.path)]), "f1")
    assert table.rows[0][-1] == math.inf and "inf" in written(table)

"""DVCLive: a folder with `plots/metrics/**/*.tsv` (step, value), `metrics.json` (the last values), `params.yaml`.

A time is only there where it was asked for; else those of the points are 0, and those of the run are the files'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from labtrack.stores import tree
from labtrack.stores.foreign.tables import Files, Table, first_row, names_in_id
from labtrack.stores.foreign.walk import placed
from labtrack.stores.foreign.written import WrittenRun, WrittenStore
from labtrack.stores.gathered import Place, run_id_of
from labtrack.stores.model import RUNNING, Findings, MetricPoint, Run
from labtrack.stores.numbers import floor
from labtrack.stores.values import flat, number_in, number_written, owner, params, read_json, read_yaml

KIND = "dvclive"
METRICS, PARAMS = "metrics.json", "params.yaml"
_PLOTS, _TABLES = "plots", Path("plots") / "metrics"
_KEPT = (METRICS, PARAMS, "dvc.yaml", "report.html", "report.md", "report.ipynb", "artifacts",
         "plots/images", "plots/sklearn", "plots/custom")  # fmt: skip
_STEP, _TIME = "step", "timestamp"


def claims(folder: Path, files: Iterable[str], folders: Iterable[str]) -> bool:
    """Whether a folder is one of DVCLive."""
    if _PLOTS in folders and tree.is_folder(folder / _TABLES):
        return True
    return METRICS in files and folder.name.startswith(KIND)


class DvcLiveStore(WrittenStore):
    """A `dvclive` folder, or a folder with such folders."""

    kind = KIND

    nothing = "", "no metric is in it yet"

    _claims = staticmethod(claims)

    def _made(self, folder: Path, there: list[Path]) -> _Run:
        return _Run(folder, *placed(self.root, folder, there))

    def _oldest(self) -> str:
        return next(iter(self._recordings), "")


class _Run(WrittenRun):
    """One folder."""

    def __init__(self, folder: Path, experiment: str, name: str) -> None:
        super().__init__(folder)
        self._experiment = experiment
        self._name = name[: -len(KIND) - 1] if name.endswith(f"/{KIND}") else name  # exp1/dvclive is exp1
        self._tables: dict[Path, Table] = {}

    def begins(self) -> bool:
        """Whether there is a first step, which says which run it is."""
        if not self.id:
            firsts = [(key, row) for key, table in self._metrics() for row in [first_row(table, self.unread)] if row]
            values = [(key, row.get(_STEP, ""), tuple(row.values())[-1]) for key, row in firsts]
            steps = [floor(step) or 0 for _, step, _ in values]
            first = [one for one, step in zip(values, steps) if step == min(steps)]
            summary = self._summary()
            if not first and not summary:
                return False
            # a folder is used again for the next run, which has other parameters or another first step
            names = names_in_id(self.folder, (value for *_, value in first), usual=KIND)
            facts: list[tuple[object, ...]] = [*first] or sorted(summary.items(), key=str)
            self.id = run_id_of(KIND, names, sorted(self._params().items()), facts)
        return True

    def run(self) -> Run:
        files = Files(self.files())
        status = files.status()
        return Run(
            self.id,
            self._experiment,
            self._name,
            owner(self.folder),
            status,
            files.first or None,
            None if status == RUNNING else files.last or None,
            artifact_uri=str(self.folder.absolute()),
            params=self._params(),
            tags={"mlflow.runName": self._name, "labtrack.recorded_with": "DVCLive"},
        )

    def files(self) -> list[Path]:
        return [self.folder / METRICS, self.folder / PARAMS, *(table.path for _, table in self._metrics())]

    def places(self) -> list[Place]:
        return [Place(self.folder, _KEPT)]

    def read(self) -> Iterator[MetricPoint]:
        names = set()
        for key, table in self._metrics():
            names.add(key)
            try:
                for index, row in enumerate(table.rows()):
                    step, moment = floor(row.get(_STEP)), floor(row.get(_TIME))
                    cell = tuple(row.values())[-1]
                    value = number_written(cell)
                    if value is None:
                        self.other("text", key)
                    else:
                        yield MetricPoint(key, value, moment or 0, index if step is None else step)
            except OSError as error:
                self.unread[table.path] = f"it can't be read: {error.strerror}"
        if Files(self.files()).status() == RUNNING:
            return  # the last values of what has no table are not the last ones yet
        summary = self._summary()
        step = floor(summary.get(_STEP)) or 0
        for key, found in summary.items():
            if key in names or key == _STEP:
                continue
            number = number_in(found)
            if number is None:
                self.other("text", key)
            else:
                yield MetricPoint(key, number, 0, step)

    def tell(self, found: Findings) -> None:
        super().tell(found)
        running = Files(self.files()).status() == RUNNING
        for table in self._tables.values():
            table.tell(found, self.id, running=running)

    def _metrics(self) -> list[tuple[str, Table]]:
        """The table of each metric, by its name; what can't be looked into is told."""
        place = self.folder / _TABLES

        def unread(path: Path, why: str) -> None:
            self.unread[path] = why

        found = []
        for path in sorted(tree.files(place, unread)):
            if path.suffix in (".tsv", ".csv") and not tree.is_clutter(path.name):
                table = self._tables.setdefault(path, Table(path, "\t" if path.suffix == ".tsv" else ","))
                found.append((path.relative_to(place).with_suffix("").as_posix(), table))
        return found

    def _summary(self) -> dict[str, object]:
        """The last value of each metric, by its name as the tables have it."""
        found = self.reading(self.folder / METRICS, read_json)
        return dict(flat(found, joint="/"))

    def _params(self) -> dict[str, str]:
        return params(self.reading(self.folder / PARAMS, read_yaml))

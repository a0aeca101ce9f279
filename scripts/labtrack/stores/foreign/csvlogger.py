"""Lightning's CSVLogger: a folder with `metrics.csv`, and mostly `hparams.yaml` and `checkpoints/`, is a run.

    epoch,step,train_loss,val_loss        a row for each call of log_metrics, with cells only for what was logged
    0,49,0.5,

When a metric comes up that was not there before, the file is written anew with a column more; the rows stay the same.
No times are recorded: those of the points are 0, and those of the run are the files'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from labtrack.stores.foreign.tables import Files, Table, first_row, names_in_id
from labtrack.stores.foreign.walk import placed
from labtrack.stores.foreign.written import WrittenRun, WrittenStore
from labtrack.stores.gathered import Place, run_id_of
from labtrack.stores.model import RUNNING, Findings, MetricPoint, Run
from labtrack.stores.numbers import floor
from labtrack.stores.values import number_written, owner, params, read_yaml

KIND = "csvlogger"
METRICS, HPARAMS, CHECKPOINTS = "metrics.csv", "hparams.yaml", "checkpoints"
_STEP, _EPOCH = "step", "epoch"


def claims(folder: Path, files: Iterable[str], folders: Iterable[str]) -> bool:
    """Whether a folder is a run of CSVLogger."""
    if METRICS not in files:
        return False
    try:
        return not {_STEP, _EPOCH}.isdisjoint(Table(folder / METRICS, ",").head())
    except OSError:
        return True  # which is told when it is read


def is_file(name: str) -> bool:
    """Whether a file is called as CSVLogger calls its own."""
    return name == METRICS


class CsvLoggerStore(WrittenStore):
    """A folder of `version_N`, one that holds such folders, or one of them."""

    kind = KIND

    nests, nothing = True, (METRICS, "there is no row in it yet")

    _claims = staticmethod(claims)

    def _made(self, folder: Path, there: list[Path]) -> _Run:
        return _Run(folder, *placed(self.root, folder, there))

    def _oldest(self) -> str:
        return next(iter(self._recordings), "")


class _Run(WrittenRun):
    """One `version_N`."""

    def __init__(self, folder: Path, experiment: str, name: str) -> None:
        super().__init__(folder)
        self._experiment, self._name = experiment, name
        self._table = Table(folder / METRICS, ",")

    def begins(self) -> bool:
        """Whether there is a row, which says which run it is."""
        if not self.id:
            first = first_row(self._table, self.unread)
            if first is None:
                return False
            # of these nothing changes; other runs with the same first row have other parameters or another name
            cells = sorted((key, value) for key, value in first.items() if value)
            names = names_in_id(self.folder, (value for _, value in cells))
            self.id = run_id_of(KIND, names, sorted(self._params().items()), cells)
        return True

    def run(self) -> Run:
        files = Files(self.files())
        status = files.status()
        return Run(
            self.id,
            self._experiment,
            self._name,
            owner(self._table.path),
            status,
            files.first or None,
            None if status == RUNNING else files.last or None,
            artifact_uri=str(self.folder.absolute()),
            params=self._params(),
            tags={"mlflow.runName": self._name, "labtrack.recorded_with": "Lightning's CSVLogger"},
        )

    def places(self) -> list[Place]:
        return [Place(self.folder, (HPARAMS, CHECKPOINTS))]

    def tell(self, found: Findings) -> None:
        super().tell(found)
        self._table.tell(found, self.id, running=Files(self.files()).status() == RUNNING)

    def files(self) -> list[Path]:
        return [self._table.path, self.folder / HPARAMS]

    def read(self) -> Iterator[MetricPoint]:
        try:
            for index, row in enumerate(self._table.rows()):
                steps = (floor(row.get(name)) for name in (_STEP, _EPOCH))
                step = next((one for one in steps if one is not None), index)
                for key, cell in row.items():
                    value = number_written(cell)
                    if value is not None and key != _STEP:
                        yield MetricPoint(key, value, 0, step)
                    elif cell and value is None:
                        self.other("text", key)
        except OSError as error:
            self.unread[self._table.path] = f"it can't be read: {error.strerror}"

    def _params(self) -> dict[str, str]:
        return params(self.reading(self.folder / HPARAMS, read_yaml))

"""`snakemake --logger labtrack`: the workflow as a run, its jobs as runs below it, recorded by labtrack.

Snakemake hands its log records to a plugin in a thread of their own, so nothing here holds the workflow up; and nothing
that fails here may end it: that is told once, on standard error.
"""

# No `from __future__ import annotations`: Snakemake makes its options from the types themselves.
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import LogRecord
from pathlib import Path
from typing import Optional

from snakemake.logging import logger
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

from labtrack.errors import LabtrackError
from labtrack.recorder.workflow import VARIABLE, parent_of
from labtrack.run.recording import JOBS, address_of, folder_of
from snakemake_logger_plugin_labtrack.workflow import Workflow


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):  # type: ignore[misc]
    """The options `--logger-labtrack-...`."""

    folder: Optional[str] = field(
        default=None,
        metadata={
            "help": "Folder that is recorded into; else as for `labtrack run`: LABTRACK_FOLDER, a labtrack:// address "
            "in MLFLOW_TRACKING_URI, $SCRATCH/labtrack, or labtrack-runs here."
        },
    )
    experiment: Optional[str] = field(
        default=None,
        metadata={"help": "Experiment; else MLFLOW_EXPERIMENT_NAME, or the name of the working directory."},
    )
    name: Optional[str] = field(
        default=None, metadata={"help": "Name of the workflow's run; else the name of the working directory."}
    )


class LogHandler(LogHandlerBase):  # type: ignore[misc]
    """What Snakemake calls."""

    def __post_init__(self) -> None:
        """Raises nothing but what a wrong option is: a folder that can't be one."""
        self._workflow: Optional[Workflow] = None
        self._told = False
        if self.common_settings.dryrun:
            return
        folder = folder_of(self.settings.folder if self.settings else None, os.environ)
        file = folder / JOBS / f"snakemake-{uuid.uuid4().hex}.jsonl"
        usual = Path.cwd().name or "snakemake"
        name = (self.settings and self.settings.name) or usual
        experiment = (self.settings and self.settings.experiment) or os.environ.get("MLFLOW_EXPERIMENT_NAME") or usual
        self._workflow = Workflow(folder, file, name, experiment, parent_of(os.environ))
        # Before any job begins: they inherit it, on a cluster too.  A training that names nothing else records beside.
        os.environ[VARIABLE] = str(file)
        os.environ.setdefault("MLFLOW_TRACKING_URI", address_of(folder))
        os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", experiment)
        self._try(self._workflow.open)
        logger.addFilter(self._keep)

    def _keep(self, record: LogRecord) -> bool:
        if self._workflow:
            self._try(self._workflow.keep, record)
        return True

    def emit(self, record: LogRecord) -> None:
        if self._workflow:
            self._try(self._workflow.take, str(getattr(record, "event", None) or ""), record)

    def close(self) -> None:
        """The workflow's end, however it ends."""
        workflow, self._workflow = self._workflow, None
        logger.removeFilter(self._keep)
        if workflow:
            self._try(workflow.end)
        super().close()

    def _try(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as error:
            if not self._told:
                self._told = True
                words = str(error) if isinstance(error, LabtrackError) else f"{type(error).__name__}: {error}"
                print(f"labtrack: the workflow goes on, and some of it is not recorded: {words}", file=sys.stderr)

    @property
    def writes_to_stream(self) -> bool:
        return False

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return True  # all records, also with --quiet

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False

"""Lightning's CSVLogger without torch, of which it uses one class in an isinstance: two gigabytes less to install.

The modules that write are Lightning's own; everything else that they import becomes something that does nothing.
"""

from __future__ import annotations

import abc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "torchmetrics", "lightning_fabric", "pytorch_lightning")
_OWN = {
    "lightning_fabric": ("loggers.logger", "loggers.csv_logs", "utilities.cloud_io", "utilities.logger",
                         "utilities.rank_zero"),
    "pytorch_lightning": ("loggers.logger", "loggers.csv_logs", "core.saving", "utilities.rank_zero"),
}  # fmt: skip
_KEPT = {f"{package}.{name}" for package, names in _OWN.items() for name in names}


class _Meta(abc.ABCMeta):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _Nothing(metaclass=_Meta):
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *given: Any, **_: Any) -> Any:
        return given[0] if given and callable(given[0]) else _Nothing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Module(types.ModuleType):
    __version__ = "2.1.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, *_: Any) -> Any:
        if name.split(".", maxsplit=1)[0] in _PACKAGES and name not in _KEPT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = [str(_SITE / spec.name.replace(".", "/"))]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


_SITE = Path(str(importlib.util.find_spec("yaml").origin)).parents[1]  # type: ignore[union-attr]


def csv_logger() -> Any:
    """The class CSVLogger of pytorch_lightning."""
    sys.meta_path.insert(0, _Finder())
    logger = importlib.import_module("lightning_fabric.loggers.logger")
    sys.modules["lightning_fabric.loggers"].Logger = logger.Logger  # type: ignore[attr-defined]
    found = importlib.import_module("pytorch_lightning.loggers.csv_logs").CSVLogger
    sys.modules["pytorch_lightning.core.saving"]._OMEGACONF_AVAILABLE = False  # type: ignore[attr-defined]
    return found

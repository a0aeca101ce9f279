"""Recordings to look at: the runs of a team that distils graph networks, and runs over seeds."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recorded import make_sqlite

T0 = 1_700_000_000_000


class Recorded:
    """A SQLite recording that tests add runs to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        make_sqlite(path, runs=0)
        self._count = 0

    def run(
        self,
        name: str = "",
        *,
        status: str = "FINISHED",
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Iterable[float]] | None = None,
        run_id: str = "",
        start: int | None = None,
    ) -> str:
        """Adds a run; gives its id.  metrics: the values of each at the steps 0, 1, ..."""  # fmt: skip
        self._count += 1
        run_id = run_id or f"{self._count:08x}" + f"{self._count * 7919:024x}"
        begun = T0 + self._count * 60_000 if start is None else start
        ended = begun + 30_000 if status not in ("RUNNING", "SCHEDULED") else None
        with sqlite3.connect(self.path) as made:
            made.execute(
                "INSERT INTO runs (run_uuid, name, user_id, status, start_time, end_time, lifecycle_stage, "
                "artifact_uri, experiment_id) VALUES (?, ?, 'ada', ?, ?, ?, 'active', '', 0)",
                [run_id, name or f"run {self._count}", status, begun, ended],
            )
            for table, values in (("params", params), ("tags", tags)):
                made.executemany(
                    f"INSERT INTO {table} (key, value, run_uuid) VALUES (?, ?, ?)",  # noqa: S608 names we know
                    [(key, str(value), run_id) for key, value in (values or {}).items()],
                )
            for key, values in (metrics or {}).items():
                made.executemany(
                    "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (key, 0.0 if math.isnan(value) else value, begun + step, step, run_id, math.isnan(value))
                        for step, value in enumerate(values)
                    ],
                )
        made.close()
        return run_id


def distilled(path: Path) -> Recorded:
    """Teachers, students with and without distillation, one that failed and one that runs."""
    made = Recorded(path)
    facts = {"stage": "evaluation", "model_arch": "gat", "scenario": "test_01"}
    for dataset, plus in (("hcrl_sa", 0.0), ("set_01", -0.1)):
        tags = {"dataset": dataset, **facts, "model_size": "teacher", "use_kd": "False", "status": "complete"}
        made.run(
            f"{dataset}/teacher_evaluation", tags=tags, params={"lr": "0.001", "layers": "3"},
            metrics={"f1": [0.5, 0.95 + plus], "accuracy": [0.97 + plus], "val_loss": [0.4, 0.2]},
        )  # fmt: skip
        for kd, lr, f1 in (("True", "0.001", 0.91), ("False", "0.001", 0.88), ("True", "0.01", 0.84)):
            tags = {"dataset": dataset, **facts, "model_size": "student", "use_kd": kd, "status": "complete"}
            if kd == "True":
                tags["teacher_run_id"] = f"{dataset}/teacher_evaluation"
            made.run(
                f"{dataset}/student{'_kd' if kd == 'True' else ''}_{lr}", tags=tags,
                params={"lr": lr, "layers": "2", **({"temperature": "4.0"} if kd == "True" else {})},
                metrics={"f1": [0.4, f1 + 0.02 + plus, f1 + plus], "auc": [f1], "val_loss": [0.5, 0.25, 0.3]},
            )  # fmt: skip
    made.run("hcrl_sa/failed", status="FAILED", tags={"dataset": "hcrl_sa", **facts, "status": "failed"})
    made.run("hcrl_sa/running", status="RUNNING", tags={"dataset": "hcrl_sa", **facts}, metrics={"f1": [0.3]})
    return made


def seeded(path: Path) -> Recorded:
    """Two models on two datasets over five seeds, and one with a single seed."""
    made = Recorded(path)
    noise = [-0.004, -0.002, 0.0, 0.002, 0.004]
    for dataset, plus in (("era5", 0.0), ("cerra", -0.2)):
        for model, f1 in (("gat", 0.91), ("mlp", 0.87)):
            for seed, off in enumerate(noise, 1):
                made.run(
                    f"{model}-{dataset}-{seed}", tags={"dataset": dataset},
                    params={"model": model, "seed": seed, "out_dir": f"/scratch/{model}/{dataset}/{seed}"},
                    metrics={"f1": [0.1, f1 + plus + off, 0.5], "val_loss": [1.0, 0.3 - off, 0.4]},
                )  # fmt: skip
    made.run("big-era5-1", tags={"dataset": "era5"}, params={"model": "big", "seed": 1, "out_dir": "/scratch/big"},
             metrics={"f1": [0.99], "val_loss": [0.1]})  # fmt: skip
    return made


def learned(path: Path) -> Recorded:
    """Three models over five seeds, with curves as training has them."""
    made = Recorded(path)
    chance = random.Random(7)  # noqa: S311 for pictures
    for model, least, rate in (("unet", 0.15, 0.001), ("gat", 0.2, 0.001), ("mlp", 0.33, 0.01)):
        for seed in range(1, 6):
            end = least + chance.gauss(0, 0.012)
            falls = [1.6 * math.exp(-step / 30) for step in range(200)]
            made.run(
                f"{model}-{seed}", params={"model": model, "lr": rate, "seed": seed, "layers": 4},
                tags={"dataset": "era5", "mlflow.source.git.commit": f"{chance.getrandbits(160):040x}",
                      "git.dirty": str(seed == 3).lower()},
                metrics={
                    "val_loss": [end + fall + 0.0003 * step + chance.gauss(0, 0.02) for step, fall in enumerate(falls)],
                    "f1": [1 - end - fall / 4 + chance.gauss(0, 0.006) for fall in falls],
                },
            )  # fmt: skip
    made.run("gat-6", status="RUNNING", params={"model": "gat", "seed": 6}, metrics={"f1": [0.5]})
    return made

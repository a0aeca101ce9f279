"""Records one training with another tracker; run by make_foreign_fixtures.py in an environment of that tracker.

    python foreign_recorder.py FORMAT FOLDER

All values are exact as 32-bit floats, which is what TensorBoard keeps.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

T0 = 1_750_000_000.0  # seconds since 1970
EXPERIMENT = "denoising"
HOST, USER = "node01", "ada"


class Point(NamedTuple):
    """A value as it is logged; time: seconds since 1970."""

    key: str
    value: float
    step: int
    time: float


class Training(NamedTuple):
    """A run."""

    name: str
    start: float
    params: dict[str, Any]
    points: list[Point]


def trainings() -> list[Training]:
    """Two runs of 20 steps, with an evaluation at every fifth."""
    return [_training("small", T0, 16, 3), _training("large", T0 + 1000, 64, 5)]


def _training(name: str, start: float, width: int, factor: int) -> Training:
    params = {"lr": 0.25, "batch_size": 32, "width": width, "optimizer": "adam", "augment": True}
    points = []
    for step in range(20):
        now = start + 10 * step + 0.125
        points.append(Point("train/loss", factor / (1 << step % 10) + step / 1024, step, now))
        if (step + 1) % 5 == 0:
            points.append(Point("val_acc", 1 - factor / (8 + step * 8), step, now))
    points.append(Point("grad_norm", math.inf, 5, start + 50.125))
    points.append(Point("grad_norm", math.nan, 6, start + 60.125))
    return Training(name, start, params, sorted(map(_single, points), key=lambda one: one.time))


def _single(point: Point) -> Point:
    """The same with a value that a 32-bit float can hold: 11 bits behind the point are enough for these."""
    finite = math.isfinite(point.value)
    return point._replace(value=round(point.value * 2048) / 2048) if finite else point


def steps(training: Training) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Step, time and values of each moment."""
    for (moment, step), points in itertools.groupby(training.points, key=lambda one: (one.time, one.step)):
        yield step, moment, {one.key: one.value for one in points}


class Clock:
    """The time that all of this process sees."""

    now = T0

    @classmethod
    def time(cls) -> float:
        return cls.now


def tensorboard(place: Path) -> None:
    """By tensorboardX, which writes what torch does, and by TensorBoard's own, which writes what TensorFlow 2 does."""
    from tensorboardX import SummaryWriter

    for training in trainings():
        Clock.now = training.start
        with SummaryWriter(str(place / "runs" / training.name)) as writer:
            writer.add_hparams(training.params, {}, name="hparams", global_step=0)
            for point in training.points:
                writer.add_scalar(point.key, point.value, point.step, walltime=point.time)
    _in_two(place, SummaryWriter)
    _other_kinds(place, SummaryWriter)
    _sweep(place, SummaryWriter)
    _tensors(place)


def _in_two(place: Path, writes: Any) -> None:
    """A run that was resumed from step 10, and logs that step again."""
    training = _training("resumed", T0 + 20000, 16, 3)
    for first, last in ((0, 10), (10, 19)):
        Clock.now = training.start + 10 * first
        with writes(str(place / "resumed" / "run")) as writer:
            for point in training.points:
                if first <= point.step <= last:
                    writer.add_scalar(point.key, point.value, point.step, walltime=Clock.now + point.step)


def _other_kinds(place: Path, writes: Any) -> None:
    import numpy

    Clock.now = T0 + 5000
    with writes(str(place / "media")) as writer:
        writer.add_scalar("loss", 0.5, 1, walltime=Clock.now)
        writer.add_image("sample", numpy.zeros((3, 200, 200), dtype=numpy.uint8), 1, walltime=Clock.now)
        writer.add_histogram("weights", numpy.array([1.0, 2.0]), 1, walltime=Clock.now)
        writer.add_text("note", "hello", 1, walltime=Clock.now)
        writer.add_pr_curve("pr", numpy.array([0, 1]), numpy.array([0.25, 0.5]), 1, walltime=Clock.now)
        writer.add_scalar("loss", 0.25, 2, walltime=Clock.now + 1)


def _sweep(place: Path, writes: Any) -> None:
    """One writer for many trials, as in torch's tutorial."""
    Clock.now = T0 + 6000
    with writes(str(place / "sweep")) as writer:
        for trial in range(3):
            Clock.now += 10
            writer.add_hparams({"lr": 0.5**trial, "trial": trial}, {"hparam/accuracy": trial / 4}, name=str(Clock.now))


def _tensors(place: Path) -> None:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2, summary_v2
    from tensorboard.summary import Writer
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    training = _training("train", T0 + 30000, 16, 3)
    Clock.now = training.start
    folder = str(place / "keras" / "train")
    writer = EventFileWriter(folder)
    start = summary_v2.hparams_pb(training.params, trial_id="1", start_time_secs=training.start)
    writer.add_event(event_pb2.Event(wall_time=Clock.now, summary=start))
    writer.close()
    Clock.now += 1
    values = Writer(folder)
    for point in training.points:
        Clock.now = point.time
        values.add_scalar(point.key, point.value, point.step)
    values.close()
    end = plugin_data_pb2.HParamsPluginData(
        session_end_info={"status": "STATUS_FAILURE", "end_time_secs": training.start + 500}, version=0
    )
    from tensorboard.compat.proto import summary_pb2

    Clock.now = training.start + 500
    writer = EventFileWriter(folder)
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="hparams", content=end.SerializeToString())
    )
    summary = summary_pb2.Summary()
    summary.value.add(tag="_hparams_/session_end_info", metadata=metadata)
    writer.add_event(event_pb2.Event(wall_time=Clock.now, summary=summary))
    writer.close()


def wandb(place: Path) -> None:
    """wandb's offline mode, any version of it; a run that was resumed, one that failed, and what is no number."""
    import wandb as module

    for training in trainings():
        run = _begin(module, training.name, training.start, training.params)
        for step, moment, values in steps(training):
            Clock.now = moment
            run.log(values, step=step)
        run.finish()
    if module.__version__ >= "0.18":  # others have another way to be told about host and program
        _resumed(module)
        _what_wandb_has_more(module)
    for path in place.glob("wandb/[dl]*"):  # links to the last run
        path.unlink()
    for path in place.glob("wandb/*/*"):  # paths of this machine
        if path.name in ("logs", "tmp"):
            shutil.rmtree(path)
    for path in place.glob("wandb/*/files/*.json"):
        path.unlink()


def _resumed(module: Any) -> None:
    training = _training("resumed", T0 + 20000, 16, 3)
    for first, last in ((0, 9), (10, 19)):
        start = training.start + 10 * first
        run = _begin(module, "resumed", start, {**training.params, "attempt": first})
        for step, moment, values in steps(training):
            if first <= step <= last:
                Clock.now = moment
                run.log(values, step=step)
        run.finish(exit_code=0 if first else 1)


def _begin(module: Any, name: str, start: float, config: dict[str, Any]) -> Any:
    Clock.now = start
    facts: dict[str, Any] = {"host": HOST, "username": USER, "program": "train.py"}
    if module.__version__ < "0.18":
        settings = module.Settings(host=HOST, username=USER, _disable_stats=True, _disable_meta=True)
    else:
        settings = module.Settings(
            **facts, program_relpath="train.py", program_abspath="/home/ada/train.py", root_dir="/home/ada",
            x_executable="python", x_disable_stats=True, x_disable_machine_info=True, x_start_time=start,
            git_remote_url="https://git.example.org/denoising.git", git_commit="c0ffee" * 6 + "c0ff",
        )  # fmt: skip
    return module.init(
        project=EXPERIMENT, name=name, id=f"{name}01", dir=".", config=config, settings=settings, resume="allow"
    )


def _what_wandb_has_more(module: Any) -> None:
    import numpy

    run = _begin(module, "more", T0 + 30000, {"model": {"width": 16, "sizes": [1, 2]}})
    run.define_metric("acc", summary="max")
    Clock.now += 10
    run.log({"acc": 0.5, "loss": {"train": 1.0, "val": 2}, "done": True, "said": "hello"}, step=3)
    Clock.now += 10
    run.log({"acc": 0.25, "weights": module.Histogram([1, 2, 3])}, step=4)
    run.log({"sample": module.Image(numpy.zeros((4, 4, 3), dtype=numpy.uint8))}, step=5)
    run.config.update({"late": None})
    run.summary["best"] = 0.75
    run.summary["loss.train"] = 0.125
    run.finish()


def csvlogger(place: Path) -> None:
    """Lightning's CSVLogger: what it notes of the epochs is left out, as the others have none."""
    from foreign_lightning import csv_logger

    for training in trainings():
        logger = csv_logger()(str(place), name="runs", version=training.name, flush_logs_every_n_steps=5)
        logger.log_hyperparams(training.params)
        for step, _, values in steps(training):
            logger.log_metrics(values, step=step)
        logger.finalize("success")
    logger = csv_logger()(str(place), name="lightning_logs")
    logger.log_hyperparams({"model": {"width": 16, "sizes": (1, 2)}, "lr": 1.0, "note": None})
    for epoch in range(3):
        logger.log_metrics({"loss_step": 1 / (1 + epoch), "epoch": epoch}, step=epoch * 10 + 9)
        logger.log_metrics({"val,loss": 0.5, "epoch": epoch, "ok": True}, step=epoch * 10 + 9)
        logger.save()
    (place / "lightning_logs" / "version_0" / "checkpoints").mkdir()
    (place / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").write_bytes(b"weights")


def dvclive(place: Path) -> None:
    """DVCLive, without DVC."""
    from dvclive import Live
    from PIL import Image

    for training in trainings():
        with Live(str(place / "runs" / training.name), save_dvc_exp=False, dvcyaml=None, report="md") as live:
            live.log_params(training.params)
            for step, moment, values in steps(training):
                Clock.now = moment
                live.step = step
                for key, value in values.items():
                    live.log_metric(key, value, timestamp=True)
                live.make_summary()
    with Live(str(place / "dvclive"), save_dvc_exp=False, dvcyaml=None, report="html") as live:
        live.log_param("model", {"width": 16})
        for _ in range(3):
            live.log_metric("train/loss", 0.5)
            live.log_metric("state", "warm")
            live.log_metric("lr", 0.25, plot=False)
            live.log_image("sample.png", Image.new("RGB", (4, 4)))
            live.log_sklearn_plot("confusion_matrix", [0, 1], [0, 1], name="cm.json")
            live.next_step()
        live.summary["best"] = 0.75
        live.summary["of"] = {"all": 1}


def sacred(place: Path) -> None:
    """Sacred's observer of files."""
    from sacred import Experiment
    from sacred.observers import FileStorageObserver
    from sacred.run import Run

    def record(name: str, config: dict[str, Any], main: Callable[[Any], Any], folder: str) -> None:
        experiment = Experiment(name, base_dir=str(place), save_git_info=False)
        experiment.observers.append(FileStorageObserver(str(place / folder)))
        experiment.add_config(config)
        experiment.main(main)
        run: Run = experiment._create_run()
        run.host_info = {"hostname": HOST, "os": ["Linux", "Linux"], "python_version": "3.11"}
        run.experiment_info = {**run.experiment_info, "base_dir": "/home/ada", "sources": [], "repositories": [
            {"url": "https://git.example.org/denoising.git", "commit": "c0ffee" * 6 + "c0ff", "dirty": False}],
            "mainfile": "train.py", "dependencies": []}  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt, ZeroDivisionError):
            run()

    for training in trainings():

        def main(_run: Any, training: Training = training) -> float:
            for point in training.points:
                Clock.now = point.time
                _run.log_scalar(point.key, point.value, point.step)
            return training.points[-1].value

        Clock.now = training.start
        record(EXPERIMENT, training.params, main, "runs")

    def fails(_run: Any) -> None:
        print("it begins")
        (place / "model.bin").write_bytes(b"weights")
        _run.add_artifact(str(place / "model.bin"), "model.bin")
        _run.info["best"] = 0.75
        _run.log_scalar("loss", 0.5)
        raise ZeroDivisionError

    def stops(_run: Any) -> None:
        raise KeyboardInterrupt

    for main_ in (fails, stops):
        Clock.now += 100
        record("others", {"model": {"width": 16, "sizes": [1, 2]}}, main_, "others")
    (place / "model.bin").unlink()
    trace = place / "others" / "1" / "run.json"
    text = trace.read_text().replace(sys.prefix, "/home/ada/venv").replace(str(Path(__file__).parent), "/home/ada")
    trace.write_text(text.replace(str(place), "/home/ada"))


def trackio(place: Path) -> None:
    """Trackio; its inbox too, which it uses where SQLite is not safe."""
    import trackio as module
    from trackio import fragments, utils

    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(Clock.now, tz)

    for name in ("trackio.run", "trackio.sqlite_storage"):  # it notes the time at which it writes what was logged
        sys.modules[name].datetime = Now  # type: ignore[attr-defined]
    for training in trainings():
        Clock.now = training.start
        module.init(project=EXPERIMENT, name=training.name, config=training.params, embed=False)
        for step, moment, values in steps(training):
            Clock.now = moment
            module.log(values, step=step)
        module.finish()
    started = datetime.fromtimestamp(T0 + 20000, timezone.utc)
    records = [
        fragments.metric_record(
            {"project": "others", "run": "inbox", "run_id": "1" * 32, "config": {"lr": 0.5}, "log_id": f"{step:032x}",
             "step": step, "timestamp": (started + timedelta(seconds=step)).isoformat(),
             "metrics": {"loss": 1 / (1 << step), "n": math.nan}}
        )
        for step in range(4)
    ]  # fmt: skip
    fragments.import_records(records[:3])
    fragments.FragmentWriter("0" * 16).write_local(records[2:], utils.TRACKIO_DIR / "inbox")
    for path in place.rglob("*.lock"):
        path.unlink()


FORMATS: dict[str, Callable[[Path], None]] = {
    one.__name__: one for one in (tensorboard, wandb, csvlogger, dvclive, sacred, trackio)
}


def main() -> None:
    name, place = sys.argv[1], Path(sys.argv[2])
    os.environ.update(
        TRACKIO_DIR=str(place / "trackio"), WANDB_MODE="offline", PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python"
    )
    socket.gethostname = lambda: HOST
    if name == "tensorboard":
        os.getpid = lambda: 4242
    time.time = Clock.time
    place.mkdir(parents=True)
    os.chdir(place)
    FORMATS[name](place)


if __name__ == "__main__":
    main()

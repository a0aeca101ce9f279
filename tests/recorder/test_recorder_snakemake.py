"""`snakemake --logger labtrack`, with the real Snakemake: workflows, their rules and what rules train, as runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from recorder_env import ROOT, Training

from labtrack.stores import open_store
from labtrack.stores.model import Run

PLUGIN = ROOT / "plugins" / "snakemake-logger-plugin-labtrack"
TRAIN = """
import mlflow, sys
seed = sys.argv[1]
with mlflow.start_run(run_name=f"seed {seed}"):
    mlflow.log_metric("loss", 1 / int(seed))
    with mlflow.start_run(run_name=f"fold of {seed}", nested=True):
        pass
print("trained", seed)
"""
WORKFLOW = """
SEEDS = [1, 2, 3]

rule all:
    input: expand("out/{seed}.txt", seed=SEEDS), "same/a", "same/b"

rule prepare:
    output: "data.txt"
    shell: "echo --password=hunter2hunter2 > {output}"

rule train:
    input: "data.txt"
    output: "out/{seed}.txt"
    log: "logs/{seed}.log"
    benchmark: "bench/{seed}.tsv"
    resources: mem_mb=500
    shell: "PYTHON train.py {wildcards.seed} > {log} 2>&1 && touch {output}"

rule bare:
    output: "bare.txt"
    shell: "PYTHON bare.py 7"

rule same:
    output: "same/{name}"
    params: "train.py 9"
    shell: "PYTHON {params}; touch same/a same/b"
"""


class Workflow(Training):
    """A folder with a workflow, and Snakemake to run it."""

    def __init__(self, folder: Path, snakefile: str) -> None:
        super().__init__("snakemake", folder)
        self.env["PYTHONPATH"] += f":{PLUGIN}"
        del self.env["MLFLOW_TRACKING_URI"]
        (folder / "Snakefile").write_text(snakefile.replace("PYTHON", str(self.python)))
        (folder / "train.py").write_text(TRAIN)
        (folder / "bare.py").write_text(TRAIN + "open('bare.txt', 'w').close()\n")

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        command = [self.python, "-m", "snakemake", "--logger", "labtrack", "--logger-labtrack-folder", self.root]
        return subprocess.Popen(
            [*command, "--cores", "2", *arguments], env=self.env, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def does(self, *arguments: str, code: int = 0) -> str:
        process = self.begin(*arguments)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == code, said
        return said

    def runs(self) -> list[Run]:
        with open_store(self.root) as store:
            return list(store.runs())


def _tree(runs: Sequence[Run]) -> Mapping[str, str]:
    """For each run's name that of its parent."""
    names = {one.id: one.name for one in runs}
    return {one.name: names[one.parent_id] if one.parent_id else "" for one in runs}


def test_a_workflow_its_rules_and_what_they_train_are_one_tree(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, WORKFLOW)
    workflow.does("all", "bare.txt", "--logger-labtrack-name", "the workflow", "--logger-labtrack-experiment", "thesis")
    runs = workflow.runs()
    tree = _tree(runs)
    for seed in (1, 2, 3):
        assert tree[f"seed {seed}"] == f"train/seed={seed}"
        assert tree[f"fold of {seed}"] == f"seed {seed}"
        assert tree[f"train/seed={seed}"] == "the workflow"
    assert tree["seed 7"] == "bare"  # bash became the training: its command line is the process's own
    assert tree["seed 9"] == "the workflow"  # two jobs of one command: which of them is not certain
    assert (tree["prepare"], tree["the workflow"]) == ("the workflow", "")
    assert {one.status for one in runs} == {"FINISHED"}
    assert "all" not in tree
    with open_store(workflow.root) as store:
        names = {one.id: one.name for one in store.experiments()}
    assert {names[one.experiment_id] for one in runs} == {"thesis"}


def test_a_job_has_its_wildcards_resources_benchmark_and_log(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, WORKFLOW)
    workflow.does("out/3.txt")
    with open_store(workflow.root) as store:
        runs = {one.name: one for one in store.runs()}
        job = runs["train/seed=3"]
        assert (job.params["seed"], job.params["resources.threads"]) == ("3", "1")
        assert job.params["resources.mem_mb"] == "500"
        points = {one.key: one.value for one in store.points(job.id)}
        assert 0 < points["benchmark.s"] < 300
        assert not {"benchmark.h:m:s", "benchmark.jobid", "benchmark.threads"} & set(points)
        log = store.local_path(job, "log/3.log")
        assert log is not None
        assert log.read_text().splitlines()[-1] == "trained 3"
        assert [one.value for one in store.points(runs[tmp_path.name].id)] == [1, 2]  # jobs_done
    assert job.tags["snakemake.input"] == "data.txt"
    assert job.tags["snakemake.output"] == "out/3.txt"
    assert runs["prepare"].tags["snakemake.command"] == "echo --password=*** > data.txt"
    assert runs[tmp_path.name].tags["mlflow.source.name"] == str(tmp_path / "Snakefile")
    assert job.start_time is not None
    assert job.end_time is not None
    assert runs["prepare"].end_time <= job.start_time <= runs["seed 3"].start_time <= job.end_time


def test_a_benchmark_of_lines_of_json_and_repeated_is_measured_too(tmp_path: Path) -> None:
    rule = 'rule one:\n    output: "one"\n    benchmark: repeat("one.jsonl", 2)\n    shell: "touch one"\n'
    workflow = Workflow(tmp_path, rule)
    workflow.does("one", "--benchmark-extended")
    (job,) = [one for one in workflow.runs() if one.name == "one"]
    with open_store(workflow.root) as store:
        assert [one.step for one in store.points(job.id) if one.key == "benchmark.s"] == [0, 1]
        assert "benchmark.threads" not in store.metric_keys(job.id)


FAILING = """
rule all:
    input: "good", "bad"
rule good:
    output: "good"
    shell: "touch good"
rule bad:
    output: "bad"
    log: "bad.log", "of/bad.log"
    benchmark: "bad.tsv"
    retries: 1
    shell: "echo x >> tries; wc -l < tries > {log[0]}; echo beside > {log[1]}; exit 3"
"""
# Snakemake hands its records over in a thread of its own, here long after the second try has removed the first's log
LATE = """
import logging.handlers, time
handle = logging.handlers.QueueListener.handle
logging.handlers.QueueListener.handle = lambda self, record: (time.sleep(0.3), handle(self, record))
"""


def test_a_failed_job_is_failed_with_its_log_and_each_try_is_a_run(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, FAILING)
    (tmp_path / "sitecustomize.py").write_text(LATE)
    (tmp_path / "bad.tsv").write_text("s\n12.5\n")  # an earlier workflow's, which measures neither try
    workflow.env["PYTHONPATH"] += f":{tmp_path}"
    workflow.does("--keep-going", code=1)
    runs = workflow.runs()
    tried = sorted((one for one in runs if one.name == "bad"), key=lambda one: one.tags["snakemake.attempt"])
    assert [(one.status, one.tags["snakemake.attempt"]) for one in tried] == [("FAILED", "1"), ("FAILED", "2")]
    with open_store(workflow.root) as store:
        for one in tried:
            texts = [store.local_path(one, f"log/{number}/bad.log") for number in (1, 2)]
            assert [text and text.read_text().strip() for text in texts] == [one.tags["snakemake.attempt"], "beside"]
            assert not store.metric_keys(one.id)
    assert {one.name: one.status for one in runs if one.name != "bad"} == {"good": "FINISHED", tmp_path.name: "FAILED"}
    assert next(one for one in runs if one.name == tmp_path.name).tags["snakemake.failed"] == "bad"


def test_a_second_try_that_succeeds_makes_the_workflow_whole(tmp_path: Path) -> None:
    shell = '"echo x >> tries; [ $(wc -l < tries) = 2 ] && touch {output}"'
    workflow = Workflow(tmp_path, f'rule twice:\n    output: "twice"\n    retries: 1\n    shell: {shell}\n')
    workflow.does("twice")
    assert sorted((one.name, one.status) for one in workflow.runs()) == sorted(
        [("twice", "FAILED"), ("twice", "FINISHED"), (tmp_path.name, "FINISHED")]
    )


def test_a_workflow_that_was_interrupted_is_killed(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, 'rule slow:\n    output: "slow"\n    shell: "touch begun; sleep 100"\n')
    process = workflow.begin("slow")
    end = time.monotonic() + 120
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0, said
    # Ctrl-C reaches the job's command, too, which Snakemake may call an error of the job's
    ends = {one.name: one.status for one in workflow.runs()}
    assert ends.pop("slow") in ("KILLED", "FAILED")
    assert ends == {tmp_path.name: "KILLED"}


def test_a_dry_run_and_a_workflow_with_nothing_to_do_make_no_jobs(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, 'rule one:\n    output: "one"\n    shell: "touch one"\n')
    workflow.does("--dry-run", "one")
    assert not workflow.root.exists()
    (tmp_path / "one").touch()
    workflow.does("one")
    assert [(one.name, one.status) for one in workflow.runs()] == [(tmp_path.name, "FINISHED")]


def test_a_workflow_that_can_not_begin_is_failed(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, 'rule one:\n    input: "missing"\n    output: "one"\n    shell: "touch one"\n')
    workflow.does("one", code=1)
    (run,) = workflow.runs()
    assert (run.status, run.tags["snakemake.error"]) == ("FAILED", "MissingInputException")


def test_what_cannot_be_recorded_costs_the_workflow_nothing(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, 'rule one:\n    output: "one"\n    shell: "touch one"\n')
    workflow.root.mkdir()
    (workflow.root / "jobs").write_text("in the way")
    said = workflow.does("one")
    assert (tmp_path / "one").exists()
    assert said.count("labtrack: the workflow goes on, and some of it is not recorded") == 1


def test_a_folder_that_is_none_is_told_before_anything_begins(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path, 'rule one:\n    output: "one"\n    shell: "touch one"\n')
    workflow.root.write_text("a file")
    said = workflow.does("one", code=1)
    assert "is a file, and jobs record into a folder" in said
    assert not (tmp_path / "one").exists()

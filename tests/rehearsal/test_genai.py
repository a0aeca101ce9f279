"""What MLflow has for language models, as a researcher's client uses it: prompts, traces, datasets, judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Rehearsal

START = """
import time
import mlflow
stamp = time.time_ns()
experiment = mlflow.set_experiment(f"genai {stamp}")
"""
PROMPTS = """
name = f"greeting-{stamp}"
mlflow.genai.register_prompt(name=name, template="Hello {{who}}")
mlflow.genai.register_prompt(name=name, template="Good day {{who}}")
mlflow.genai.set_prompt_alias(name, alias="best", version=2)
assert mlflow.genai.load_prompt(f"prompts:/{name}/1").format(who="you") == "Hello you"
assert mlflow.genai.load_prompt(f"prompts:/{name}@best").format(who="you") == "Good day you"
assert name in [prompt.name for prompt in mlflow.genai.search_prompts()]
"""
TRACES = """
@mlflow.trace
def double(x):
    return 2 * x

double(2)
mlflow.flush_trace_async_logging()
number = mlflow.get_last_active_trace_id()
assert mlflow.get_trace(number).data.spans[0].outputs == 4
mlflow.set_trace_tag(number, "seen", "yes")
assert [found.info.tags["seen"] for found in mlflow.search_traces(return_type="list")] == ["yes"]
"""
DATASETS = """
from mlflow.genai.datasets import create_dataset, search_datasets
made = create_dataset(name=f"questions-{stamp}", experiment_id=[experiment.experiment_id])
made.merge_records([{"inputs": {"q": "1+1"}, "expectations": {"a": "2"}}])
assert made.dataset_id in [found.dataset_id for found in search_datasets(max_results=50)]
"""
JUDGES = """
from mlflow.genai.scorers import Guidelines, list_scorers
Guidelines(name="polite", guidelines="be polite").register()
assert [scorer.name for scorer in list_scorers()] == ["polite"]
"""


@pytest.mark.parametrize("part", [PROMPTS, TRACES, DATASETS, JUDGES], ids=["prompts", "traces", "datasets", "judges"])
def test_the_client_s_own_functions_work(rehearsal: Rehearsal, part: str) -> None:
    rehearsal.ssh("login", "cat > /home/ada/genai.py", stdin=f"{START}{part}print('fine')\n", check=True)
    assert rehearsal.as_ada(f"{rehearsal.PYTHON} genai.py").splitlines()[-1] == "fine"

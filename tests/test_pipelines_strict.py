"""The Kubeflow packages themselves, run as Kubeflow's backend runs them: all branches, caches, faults.

What components do is played: each returns what the scenario says, and the URIs of its outputs. Only the
record of the run's end is the real one.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from kfp import compiler
from kfp.dsl.executor import Executor
from strict_backend import FAILURE, LOST, Backend, Call, PodLostError, Result, TaskFailedError

from calib_pipelines.compile import DEFINITIONS, write
from calib_pipelines.definitions.run_record import record_end
from calib_pipelines.examples.lm_eval_samples import lm_eval_samples
from calib_pipelines.examples.trl_training import trl_training
from calib_pipelines.examples.vertex_batch_prediction import vertex_batch_prediction
from calib_pipelines.packages.checking import broken, check_package
from calib_pipelines.packages.rules import BACKENDS
from calib_pipelines.packages.spec import Graph, read_graph
from calib_pipelines.targets.compiling import package
from calib_pipelines.targets.kubeflow import KubeflowSettings
from calib_pipelines.targets.vertex import VertexSettings

OLDEST, NEWEST = (2, 14), (2, 17)
MODEL = "org/model@main"
PATHS = {  # what evaluations advise before and after fine-tuning on answers
    "none": ("none", ""),
    "temperature": ("temperature", ""),
    "cft": ("cft", "none"),
    "cft-falls-short": ("cft", "cft"),
    "rcft": ("rcft", ""),
    "cft-then-rcft": ("cft", "rcft"),
}
SETTINGS = KubeflowSettings(
    model_parameters="1.5B", accelerator="nvidia-l4", pvc="work:/work", run_records="/work/runs", retries=2
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The three packages for Kubeflow."""
    folder = tmp_path_factory.mktemp("packages")
    found = {}
    for name in DEFINITIONS:
        write(package("kubeflow", SETTINGS, pipeline=name), folder / "package.yaml")
        found[name] = read_graph(folder / "package.yaml")
    return {name: [graph.pipeline, *graph.platforms] for name, graph in found.items()}


class Scenario:
    """What components return.

    Attributes:
        path: a key of `PATHS`.
        promoted: what the gate says.
        fails: programs that fail, by the component's name: the error, and how many attempts.
    """

    def __init__(self, path: str = "cft", *, promoted: bool = True) -> None:
        self.path, self.promoted = path, promoted
        self.fails: dict[str, tuple[type[Exception], int]] = {}

    def advice(self, model: str) -> str:
        before, after = PATHS[self.path]
        if "/em-ece-finetune/" in model:
            return "none"
        return after if "/cft-finetune/" in model else before

    def programs(self) -> dict[str, Any]:
        made = {
            "data-prep": lambda call: None,
            "fresh-data": lambda call: {"champion_model": MODEL},
            "dpo-align": lambda call: {"uri": call.uri("adapter")},
            "evaluate": lambda call: {
                "regime": "calibratable",
                "branch": self.advice(call.parameters["model"]),
                "uri": call.uri("evaluation"),
                "prompt_form": "chat" if call.parameters["prompt_form"] == "auto" else "plain",
            },
            "temperature-scaling": lambda call: {
                "branch": "temperature",
                "uri": call.uri("scaled"),
                "after_uri": call.uri("after"),
            },
            "cft-finetune": lambda call: {"branch": "cft", "uri": call.uri("adapter")},
            "em-ece-finetune": lambda call: {"branch": "rcft", "uri": call.uri("adapter")},
            "end-branch": lambda call: {
                name: call.parameters[name] for name in ("model", "evaluation", "branch", "advice")
            },
            "promote": lambda call: {
                "promoted": self.promoted,
                "winner": call.parameters["model_after" if self.promoted else "model_before"],
            },
            "publish-champion": lambda call: {"champion_model": call.parameters["model"], "number": 7},
            "register-model": lambda call: {"entry": ""},
            "record-end": lambda call: None,
            "shard-questions": lambda call: {"Output": [0, 1, 2]},
            "score-shard": lambda call: None,
            "merge-predictions": lambda call: None,
            "measure": lambda call: {"conf_ece": 0.1, "regime": "calibrated"},
        }
        return {name: self._faulty(name, program) for name, program in made.items()}

    def _faulty(self, name: str, program: Any) -> Any:
        def run(call: Call) -> Any:
            error, attempts = self.fails.get(name, (TaskFailedError, 0))
            if call.attempt <= attempts:
                raise error(f"{name} fails")
            return program(call)

        return run


def ended(result: Result) -> tuple[str, str]:
    """How a run ended, and what its exit task was told."""
    return result.phase, arguments(result, "record-end")["status"]["state"]


def arguments(result: Result, task: str) -> dict[str, Any]:
    """Parameters that a task's program was started with last."""
    return [call for call in result.calls if call.task == task][-1].parameters


def check_gate(result: Result, path: str, start: str) -> None:
    """The gate compares what the branch came to with what went in."""
    gate = arguments(result, "promote")
    branch = path.removeprefix("cft-then-").removesuffix("-falls-short")
    assert gate["branch"] == branch
    assert gate["model_before"] == start
    if branch == "none":
        assert gate["model_after"] == start
        assert gate["after"] == gate["before"]
    else:
        made_by, evaluated = {
            "temperature": ("temperature-scaling", "temperature-scaling"),
            "cft": ("cft-finetune", "evaluate-2"),
            "rcft": ("em-ece-finetune", "evaluate-3"),
        }[branch]
        assert f"/{made_by}/" in gate["model_after"]
        assert f"/{evaluated}/" in gate["after"]
    assert "/evaluate/" in gate["before"]


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_package_keeps_the_rules_of_every_release(name, packages):
    graph = Graph(packages[name][0], tuple(packages[name][1:]))
    for version in BACKENDS:
        assert broken(graph, "kubeflow", version=version, values={}) == []


@pytest.mark.parametrize("pipeline", [lm_eval_samples, trl_training, vertex_batch_prediction])
def test_examples_keep_the_rules_of_every_release(pipeline, tmp_path):
    compiler.Compiler().compile(pipeline, str(tmp_path / "package.yaml"))
    for version in BACKENDS:
        assert check_package(tmp_path / "package.yaml", "kubeflow", version=version) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_package_keeps_the_rules_of_vertex(name, tmp_path):
    path = tmp_path / "package.yaml"
    write(package("vertex", VertexSettings(), pipeline=name), path)
    assert check_package(path, "vertex", values={}) == []


@pytest.mark.parametrize("version", [OLDEST, (2, 16), NEWEST])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_restore_takes_every_branch_and_then_all_of_it_from_the_cache(packages, path, align, version):
    backend = Backend(Scenario(path).programs(), version=version, seed=len(path))
    given = {"model": MODEL, "questions": "gs://b/q.jsonl", "align": align}
    first, second = (backend.run(packages["restore-calibration"], given) for _ in range(2))
    for result in (first, second):
        assert result.phase == "Succeeded", result.errors
        start = first.outputs("dpo-align")["uri"] if align else MODEL
        check_gate(result, path, start)
        assert result.outputs("promote")["winner"] == arguments(result, "promote")["model_after"]
    assert {task for task in second.ran if not task.startswith("end-branch")} == {"promote", "record-end"}
    assert second.ran.count("promote") == 1
    assert sum(task.startswith("end-branch") for task in second.ran) == 3
    assert arguments(first, "promote") == arguments(second, "promote")


@pytest.mark.parametrize(("path", "task"), [("cft", "cft-finetune"), ("rcft", "em-ece-finetune")])
def test_a_run_keeps_to_the_prompt_form_that_its_first_evaluation_found(packages, path, task):
    backend = Backend(Scenario(path).programs(), version=NEWEST)
    given = {"model": MODEL, "questions": "gs://b/q.jsonl", "prompt_form": "auto"}
    result = backend.run(packages["restore-calibration"], given)
    assert result.phase == "Succeeded", result.errors
    evaluations = [call.parameters for call in result.calls if call.task.startswith("evaluate")]
    assert [one["prompt_form"] for one in evaluations] == ["auto", "chat"]
    assert all(one["require_regime"] is True for one in evaluations)
    assert arguments(result, task)["prompt_form"] == "chat"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_run_whose_branch_differs_from_the_cached_ones_goes_its_own_way(packages, version):
    scenario = Scenario()
    backend = Backend(scenario.programs(), version=version)
    for number, path in enumerate([*PATHS, *reversed(PATHS)]):
        scenario.path = path
        given = {"model": f"{MODEL}-{path}", "questions": "gs://b/q.jsonl", "align": number % 2 == 0}
        result = backend.run(packages["restore-calibration"], given)
        assert result.phase == "Succeeded", result.errors
        start = result.outputs("dpo-align")["uri"] if given["align"] else given["model"]
        check_gate(result, path, start)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("task", ["data-prep", "evaluate", "cft-finetune", "end-branch", "promote"])
def test_a_task_that_fails_and_is_retried_does_not_change_a_run(packages, task, version):
    scenario = Scenario("cft-then-rcft")
    scenario.fails[task] = (TaskFailedError if version < NEWEST else PodLostError, 2)
    backend = Backend(scenario.programs(), version=version)
    given = {"model": MODEL, "questions": "gs://b/q.jsonl"}
    for _ in range(2):
        result = backend.run(packages["restore-calibration"], given)
        assert result.phase == "Succeeded", result.errors
        check_gate(result, "cft-then-rcft", MODEL)
        scenario.fails.clear()


@pytest.mark.parametrize(
    ("version", "task", "error", "state"),
    [
        (OLDEST, "data-prep", TaskFailedError, "FAILED"),
        (OLDEST, "cft-finetune", TaskFailedError, "RUNNING"),  # only the branch's own DAG is told
        (OLDEST, "promote", PodLostError, "RUNNING"),  # nobody can tell
        (NEWEST, "data-prep", TaskFailedError, "FAILED"),
        (NEWEST, "cft-finetune", TaskFailedError, "FAILED"),
        (NEWEST, "promote", PodLostError, "RUNNING"),
    ],
)
def test_the_exit_task_runs_whatever_failed(packages, version, task, error, state):
    scenario = Scenario("cft")
    scenario.fails[task] = (error, 9)
    result = Backend(scenario.programs(), version=version).run(
        packages["restore-calibration"], {"model": MODEL, "questions": "gs://b/q.jsonl"}
    )
    assert ended(result) == ("Failed", state)
    assert result.ran[-1] == "record-end"


def test_the_exit_task_of_a_run_that_succeeds_is_told_so_from_2_17_on(packages):
    given = {"model": MODEL, "questions": "gs://b/q.jsonl"}
    for version, state in ((OLDEST, "RUNNING"), (NEWEST, "COMPLETE")):
        backend = Backend(Scenario().programs(), version=version)
        for _ in range(2):
            assert ended(backend.run(packages["restore-calibration"], given)) == ("Succeeded", state)


AWKWARD = {
    "model": MODEL,
    "questions": 'gs://b/"q" {{$.outputs}}.jsonl',
    "cluster": '{"platform": "kubeflow", "claims": ["a\\\\b"]}',
    "data_snapshot": "two\nlines \\ 'and' more",
    "epochs": 3,
    "learning_rate": 1e-05,
    "align": False,
}


def test_the_record_of_a_run_has_its_parameters_as_they_were_given(packages, tmp_path, monkeypatch):
    def really(call: Call) -> None:
        given = json.dumps(call.executor_input)
        monkeypatch.setattr(sys, "argv", ["executor", "--executor_input", given])
        Executor(executor_input=json.loads(given), function_to_execute=record_end.python_func).execute()

    programs = {**Scenario().programs(), "record-end": really}
    backend = Backend(programs, root=str(tmp_path / "root"))
    documents = json.loads(json.dumps(packages["restore-calibration"]))
    end = documents[0]["root"]["dag"]["tasks"]["record-end"]
    end["inputs"]["parameters"]["folder"]["runtimeValue"]["constant"] = str(tmp_path / "runs")
    monkeypatch.setattr("kfp.dsl.executor.Executor.write_executor_output", lambda self, *given: None)
    result = backend.run(documents, AWKWARD)
    assert result.phase == "Succeeded", result.errors
    (written,) = (tmp_path / "runs").iterdir()
    record = json.loads(written.read_text())
    assert record["state"] == "SUCCEEDED"
    assert record["pipeline"] == "restore-calibration"
    assert {name: record["parameters"][name] for name in AWKWARD} == AWKWARD
    defaults = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert record["parameters"].keys() == defaults.keys()


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("promoted", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_recalibrate_takes_every_branch_twice(packages, path, promoted, version):
    backend = Backend(Scenario(path, promoted=promoted).programs(), version=version, seed=len(path))
    given = {"stream": "s3://b/stream", "champion": "s3://b/champion", "model": MODEL}
    for _ in range(2):
        result = backend.run(packages["recalibrate"], given)
        assert result.phase == "Succeeded", result.errors
        check_gate(result, path, MODEL)
        gate, published = arguments(result, "promote"), arguments(result, "publish-champion")
        assert published["model"] == gate["model_after" if promoted else "model_before"]
        assert published["run_name"] == f"recalibrate {backend.runs}"
        assert arguments(result, "register-model")["model"] == published["model"]
        assert arguments(result, "register-model")["number"] == 7


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_score_large_collects_its_shards_also_from_the_cache_and_after_a_retry(packages, version):
    scenario = Scenario()
    backend = Backend(scenario.programs(), version=version, retried=(FAILURE, LOST))
    for shards in (3, 0):
        scenario.fails = {"score-shard": (PodLostError, 1)}
        result = backend.run(packages["score-large"], {"model": MODEL, "questions": "hub/set"})
        assert result.phase == "Succeeded", result.errors
        assert result.ran.count("score-shard") == 2 * shards
        parts = next(path for path in result.executions if path.endswith("/merge-predictions"))
        assert len(result.executions[parts].input_artifacts) == 1 + 3
    scenario.fails = {"score-shard": (TaskFailedError, 9)}
    result = backend.run(packages["score-large"], {"model": "other", "questions": "hub/set"})
    assert ended(result)[0] == "Failed"

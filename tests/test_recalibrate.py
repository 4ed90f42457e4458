"""The pipeline recalibrate: stops where the champion is calibrated, else trains, and promotes or refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from registry_standin import KubeflowRegistry, serving

from calib_components.nodes.job import JobConfig
from calib_components.register_model.registries import RegisterConfig
from calib_core.champion.history import read_figures
from calib_core.champion.state import read_champion
from calib_core.data.questions import read_questions, write_questions
from calib_core.settings.parameters import parameters_of
from calib_core.steps.calibrate import CalibrateConfig, calibrate
from calib_core.steps.evaluate import EvaluateConfig
from calib_core.steps.fresh import FreshConfig, fresh
from calib_core.steps.promote import PromoteConfig
from calib_core.steps.publish import PublishConfig, publish_champion
from calib_pipelines.definitions.recalibrate import recalibrate
from calib_pipelines.run.local import run_local

SETTINGS: dict[str, Any] = {
    "target_ece": 0.2,  # what 360 questions in a fold can decide on
    "dtype": "float32",
    "option_orders": "given",  # in this world a cue tells the letter, whatever the option says
    "lora_r": 8,
    "lora_alpha": 16,
    "learning_rate": 5e-3,
    "batch_size": 16,
    "epochs": 3,
}


def test_parameters_agree_with_those_of_the_steps():
    inputs = recalibrate.component_spec.inputs
    steps = {}
    for config in (PromoteConfig, EvaluateConfig, JobConfig, RegisterConfig, FreshConfig):
        steps |= {parameter.name: parameter.default for parameter in parameters_of(config)}
    own = {"stream": None, "champion": None, "model_registry": ""}
    assert {name: given.default for name, given in inputs.items()} == {
        name: (steps | own)[name] for name in inputs
    }
    assert all(given.description for given in inputs.values())


@pytest.fixture(scope="module")
def too_sure(tmp_path_factory):
    """A tiny model that was trained where annotators were always right, so that it is too sure elsewhere."""
    import tiny
    import torch
    import trained

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIB_CACHE", str(root / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")  # on matrices this small threads only wait for each other
        random = tiny.save_tiny_model(root / "random", hidden_size=64, head_dim=16, initializer_range=0.05)
        yield trained.train(random, root / "too-sure", trained.world(1000, seed=10, right=1.0), epochs=4)


CHANCE = {"accuracy_margin": 0.1}
"""On 360 questions chance alone moves accuracy by as much."""


def put_batch(folder: Path, number: int, *, right: float) -> None:
    """A batch of 1,200 questions with annotators who are right at this rate."""
    import trained

    write_questions(trained.world(1200, seed=100 + number, right=right), folder / f"batch-{number}.parquet")


def run_steps(root: Path, model: Path, number: int, **changes: object) -> dict[str, Any]:
    """One run of what the pipeline does, in this process."""
    work, champion = root / f"run{number}", str(root / "champion")
    found = fresh(
        FreshConfig(model=str(model)),
        stream=str(root / "stream"),
        champion=champion,
        data=work / "data",
        snapshot=work / "snapshot",
    )
    summary = calibrate(
        CalibrateConfig(**{**SETTINGS, "n_resamples": 300, **changes}),
        model=found["model"],
        data=work / "data",
        out=work / "out",
        adapter=work / "adapter",
    )
    publish_champion(
        PublishConfig(run_name=f"run{number}"),
        champion=champion,
        snapshot=work / "snapshot",
        summary=work / "out",
        model=work / "adapter",
    )
    return summary


@pytest.mark.slow
def test_drifting_stream_is_followed(too_sure, tmp_path):
    """Four batches: trains and promotes, stops early, refuses a worse challenger, promotes a better one."""
    runs = []
    # From batch 3 on annotators are right less often; run 3 has a learning rate 100 times too high.
    for number, right, changes in (
        (1, 0.75, CHANCE),
        (2, 0.75, {}),
        (3, 0.35, {"learning_rate": 0.5}),
        (4, 0.35, CHANCE),
    ):
        put_batch(tmp_path / "stream", number, right=right)
        runs.append(run_steps(tmp_path, too_sure, number, **changes))
    assert [run["promoted"] for run in runs] == [True, False, False, True]
    assert [run["branch"] == "none" for run in runs] == [False, True, False, False]
    assert [run["regime"] == "calibrated" for run in runs] == [False, True, False, False]
    assert not (tmp_path / "run2" / "out" / "after").exists()  # one evaluation, nothing else
    assert runs[2]["reasons"][-1] == "The recalibrated model isn't promoted; the input model is kept."
    assert runs[3]["gate"]["ece_change"]["high"] < 0

    champion, _ = read_champion(tmp_path / "champion")
    assert [(change.action, change.run) for change in champion.history] == [
        ("first", ""),
        ("promoted", "run1"),
        ("promoted", "run4"),
    ]
    rows = read_figures(tmp_path / "champion")
    assert [row["promoted"] for row in rows] == [True, False, False, True]
    assert [row["before_conf_ece"] for row in rows] == [run["before"]["conf_ece"]["value"] for run in runs]
    # Challenger and champion were measured on the same questions, and on none of an earlier run's.
    judged = []
    for number, run in enumerate(runs, start=1):
        data = tmp_path / f"run{number}" / "data"
        judged.append({question.id for question in read_questions(data / "test.parquet")[0]})
        assert run["before"]["n"] == run["after"]["n"] == len(judged[-1])
    assert len(set().union(*judged)) == sum(map(len, judged))


@pytest.fixture
def registry():
    """A Kubeflow Model Registry on loopback, and its address."""
    pytest.importorskip("model_registry", reason="needs kubeflow[hub]")
    registry = KubeflowRegistry()
    with serving(registry.answer) as address:
        yield registry, address


@pytest.mark.slow
def test_compiled_pipeline_trains_promotes_and_then_stops_early(too_sure, registry, tmp_path):
    registered, address = registry
    stream, champion = tmp_path / "stream", tmp_path / "champion"
    given = {"stream": str(stream), "champion": str(champion), "model": str(too_sure), **SETTINGS}
    given |= {"model_registry": address, **CHANCE}
    put_batch(stream, 1, right=0.75)
    first = run_local(given, tmp_path / "first", pipeline="recalibrate")
    assert (first["regime"], first["branch"], first["promoted"]) == ("calibratable", "cft", True)
    state, _ = read_champion(champion)
    assert Path(state.model).is_relative_to(champion)
    assert (Path(state.model) / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "first" / "model" / "adapter_model.safetensors"
    ).read_bytes()
    assert state.history[-1].run.startswith("recalibrate-")
    (version,) = registered.versions
    assert version["name"] == str(state.number)
    assert registered.artifacts[0]["uri"] == state.model
    assert 'id="trend"' in (tmp_path / "first" / "report.html").read_text()

    put_batch(stream, 2, right=0.75)
    second = run_local(given, tmp_path / "second", pipeline="recalibrate")
    assert (second["regime"], second["branch"], second["promoted"]) == ("calibrated", "none", False)
    assert second["model"] == state.model
    assert registered.versions == [version]
    (run,) = (tmp_path / "second" / "run").iterdir()
    tasks = {path.name for path in run.iterdir()}
    assert {task for task in tasks if not task.startswith("end-branch")} == {
        *("fresh-data", "evaluate", "promote", "publish-champion", "register-model")
    }
    assert [row["promoted"] for row in read_figures(champion)] == [True, False]
    assert "2 so far" in (tmp_path / "second" / "report.html").read_text()
    assert json.loads((champion / "champion.json").read_text())["number"] == 2

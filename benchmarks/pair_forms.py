"""Which form of preference pairs shows the collapse: how sure of one letter is the model after DPO?

Aligns the embedded model by DPO on geography pairs of each form, labelled by annotators who are right 70 % of
the time, and measures it on held-out four-option questions before and after. Prints JSON.

    python benchmarks/pair_forms.py [--pairs 100] [--learning-rate 5e-4] [--questions 200]

About five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from typing import Any

import peft
import torch
import transformers
import trl

from calib_core.data.questions import Question
from calib_core.demo.geography import PAIR_FORMS, PairForm, make_preferences, make_questions
from calib_core.metrics.figures import conf_ece
from calib_core.models.embedded import embedded_model
from calib_core.models.loading import LoadedModel, load_model
from calib_core.scoring.pairs import sequence_logprobs, win_rate
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import score
from calib_core.training.config import AlignConfig
from calib_core.training.dpo import align_with_dpo
from calib_core.training.lora import attach_lora

HELD_OUT_PAIRS = 60


def measure(loaded: LoadedModel, questions: list[Question]) -> dict[str, float]:
    """Figures of the questions' letters."""
    predictions = score(loaded, questions, PromptEncoder(loaded.tokenizer, PromptForm()))
    confidence, correct = predictions.confidence(), predictions.correct()
    return {
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidence.mean()),
        "conf_ece": conf_ece(confidence, correct),
        "letter_mass": float(predictions.letter_mass.mean()),
    }


def collapse(form: PairForm, config: AlignConfig, n_pairs: int, questions: list[Question]) -> dict[str, Any]:
    """What DPO on pairs of one form does."""
    pairs = make_preferences(n=n_pairs + HELD_OUT_PAIRS, form=form)
    fit, held_out = pairs[:n_pairs], pairs[n_pairs:]
    loaded = attach_lora(load_model(embedded_model(), trainable=True), config)
    before = win_rate(sequence_logprobs(loaded, held_out))
    started_s = time.perf_counter()
    training = align_with_dpo(config, loaded, fit)
    return {
        "form": form,
        "training": training,
        "seconds": time.perf_counter() - started_s,
        "win_rate": {"before": before, "after": win_rate(sequence_logprobs(loaded, held_out))},
        "after": measure(loaded, questions),
    }


def main() -> None:
    """Align once per form and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--questions", type=int, default=200)
    given = parser.parse_args()
    questions = [question for question in make_questions() if len(question.choices) == 4][: given.questions]
    config = AlignConfig(learning_rate=given.learning_rate, lora_r=16, lora_alpha=32, lora_dropout=0.0)
    result = {
        "pairs": given.pairs,
        "learning_rate": given.learning_rate,
        "questions": len(questions),
        "untouched": measure(load_model(embedded_model()), questions),
        "forms": [collapse(form, config, given.pairs, questions) for form in PAIR_FORMS],
        "versions": {package.__name__: package.__version__ for package in (torch, transformers, peft, trl)},
        "machine": platform.machine(),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

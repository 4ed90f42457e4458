"""How much weight should the EM-ECE loss have in RCFT? A real model that has memorised its questions.

    calib demo --scenario memorised --out memorised
    python benchmarks/rcft_weight.py --inputs memorised/inputs

runs RCFT from the model that the demonstration made, once per weight, and prints one JSON object with the
calibration fold's figures before (step 0) and along the way: how far confidence fell, and what it cost in
accuracy. Weight 0 is the language-model loss alone. About seven minutes per weight on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from checkout import commit

from calib_core.models.loading import load_model
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import encode_questions, score_encoded
from calib_core.steps.finetune import rcft
from calib_core.steps.folder import read_data
from calib_core.training.config import FinetuneConfig
from calib_core.training.stopping import evaluate_heldout
from calib_pipelines.run.demo import MEMORISED

FIGURES = ("step", "accuracy", "mean_confidence", "conf_ece", "debiased_ece_high", "nll_nats")


def before(model: Path, data: Path) -> dict[str, Any]:
    """Figures of the input model on the calibration fold."""
    loaded = load_model(str(model), dtype="auto")
    encoder = PromptEncoder(loaded.tokenizer, PromptForm())
    questions = read_data(data).folds["calibration"]
    encoded = encode_questions(questions, encoder, context_tokens=loaded.context_tokens)
    predictions = score_encoded(loaded, encoded, batch_tokens=4096, description="scoring calibration")
    start = evaluate_heldout(predictions, step=0, epoch=0.0, objective="none", train_loss=None, n_bins=10)
    return {name: asdict(start)[name] for name in FIGURES}


def along(model: Path, data: Path, weight: float, learning_rate: float) -> list[dict[str, Any]]:
    """Figures of the calibration fold in one run of RCFT, the settings else those of the demonstration."""
    known = {field.name for field in fields(FinetuneConfig)}
    settings = {name: value for name, value in MEMORISED.items() if name in known}
    changes = {
        "lambda_ece": weight,
        "learning_rate": learning_rate,
        "patience": 99,
    }
    with tempfile.TemporaryDirectory(prefix="calib-") as folder:
        config = FinetuneConfig(**{**settings, **changes})
        record = rcft(config, str(model), data, Path(folder) / "adapter")
    return [{name: evaluation[name] for name in FIGURES} for evaluation in record["history"]]


def main() -> None:
    """Run everything and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=Path, required=True, help="the folder `inputs` of the demonstration")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 5.0, 20.0])
    parser.add_argument("--learning-rate", type=float, default=MEMORISED["learning_rate"])
    given = parser.parse_args()
    model, data = given.inputs / "memoriser", given.inputs / "data"
    result = {
        "environment": {
            "commit": commit(),
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
        "learning_rate": given.learning_rate,
        "before": before(model, data),
        "after": {str(w): along(model, data, w, given.learning_rate) for w in given.weights},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""How much faster is scoring than the ordinary way, and does it give the same answers?

Scores geography questions with the embedded model, in turns with plain transformers: padded batches in file
order, the whole vocabulary's logits at every position. Without and with worked examples as a common
beginning. Prints JSON.

    python benchmarks/scoring_speed.py [--questions 300] [--shots 5] [--repeats 3]

About three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from checkout import commit
from numpy.typing import NDArray

from calib_core.data.questions import Question
from calib_core.demo.geography import make_questions
from calib_core.models.embedded import embedded_model
from calib_core.models.loading import LoadedModel, load_model
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import score

PEER_BATCH = 16


def ours(loaded: LoadedModel, questions: list[Question], encoder: PromptEncoder) -> NDArray[np.float32]:
    """Option logits (N, K) by `scoring.score`."""
    return score(loaded, questions, encoder, description="ours").logits


def peer(loaded: LoadedModel, questions: list[Question], encoder: PromptEncoder) -> NDArray[np.float32]:
    """The same by plain transformers: pad, full forward, look up the answer position."""
    rows = []
    for start in range(0, len(questions), PEER_BATCH):
        part = questions[start : start + PEER_BATCH]
        batch = loaded.tokenizer.pad(
            {"input_ids": [encoder.encode(q) for q in part]}, padding_side="right", return_tensors="pt"
        ).to(loaded.model.device)
        with torch.inference_mode():
            logits = loaded.model(**batch, use_cache=False).logits.float()
        last = batch["attention_mask"].sum(dim=1) - 1
        for row, question in enumerate(part):
            rows.append(logits[row, last[row], encoder.letter_ids(len(question.choices))].cpu().numpy())
    return np.stack(rows)


def compare(loaded: LoadedModel, questions: list[Question], shots: int, repeats: int) -> dict[str, Any]:
    """Seconds of both ways, alternating, and how far their logits are apart."""
    encoder = PromptEncoder(loaded.tokenizer, PromptForm(shots=tuple(questions[:shots])))
    asked = questions[shots:]
    ways: dict[str, Callable[..., NDArray[np.float32]]] = {"ours": ours, "plain_transformers": peer}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    logits = {}
    for _ in range(repeats):
        for name, way in ways.items():
            started_s = time.perf_counter()
            logits[name] = way(loaded, asked, encoder)
            seconds[name].append(time.perf_counter() - started_s)
    best = {name: min(values) for name, values in seconds.items()}
    difference = np.abs(logits["ours"] - logits["plain_transformers"])
    top = [values.argmax(axis=1) for values in logits.values()]
    return {
        "shots": shots,
        "questions": len(asked),
        "prompt_tokens": sum(len(encoder.encode(question)) for question in asked),
        "seconds": seconds,
        "ratio_of_best": best["plain_transformers"] / best["ours"],
        "logit_difference": {"mean": float(difference.mean()), "max": float(difference.max())},
        "same_top_option": float((top[0] == top[1]).mean()),
    }


def environment(loaded: LoadedModel) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(loaded.model.device),
        "dtype": loaded.dtype,
    }


def main() -> int:
    """Measure, print, and fail where the two ways are further apart than bfloat16 explains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    loaded = load_model(embedded_model())
    questions = [question for question in make_questions() if len(question.choices) == 4]
    runs = [
        compare(loaded, questions[: arguments.questions + shots], shots, arguments.repeats)
        for shots in dict.fromkeys((0, arguments.shots))
    ]
    print(json.dumps({"environment": environment(loaded), "runs": runs}, indent=2))
    return 0 if all(run["logit_difference"]["mean"] < 0.2 for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())

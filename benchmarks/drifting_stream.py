"""Does the scheduled pipeline do the right thing on a stream that drifts? Real weights, four batches.

    python benchmarks/drifting_stream.py --out drift

runs the compiled pipeline `recalibrate` four times on SmolLM2-135M-Instruct, each time after one more batch
of geography questions has arrived, and prints one JSON object with what every run found and did. Subjects and
the annotators' accuracy change between the second batch and the third; the third run has a learning rate 50
times too high, so that its challenger is worse. `drift` gets the stream, the champion's folder with history,
figures and reports, and the runs.

Expected: the first run trains and promotes, the second stops after one evaluation, the third refuses its
challenger, the fourth promotes one. The exit code is 1 if it came out otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from checkout import commit

from calib_core.data.questions import Question, write_questions
from calib_core.demo.geography import READING, make_questions
from calib_core.models.embedded import embedded_model
from calib_pipelines.run.local import run_local

SETTINGS: dict[str, Any] = {
    "target_ece": 0.15,  # what batches this small can decide on
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "learning_rate": 1e-3,
    "batch_size": 4,
    "epochs": 4,
    "evaluations_per_epoch": 1,
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of the stream, and how the run after it goes.

    Attributes:
        reading: share of questions that state their fact first; the others need knowledge.
        annotators: share of labels that are right.
        expected: `promoted`, `stopped` or `refused`.
        changes: settings of the run that differ.
    """

    reading: float
    annotators: float
    expected: str
    changes: dict[str, Any]


BATCHES = (
    Batch(reading=0.9, annotators=0.95, expected="promoted", changes={}),
    Batch(reading=0.9, annotators=0.95, expected="stopped", changes={}),
    Batch(reading=0.3, annotators=0.6, expected="refused", changes={"learning_rate": 5e-2}),
    Batch(reading=0.3, annotators=0.6, expected="promoted", changes={}),
)


def draw_batches(size: int) -> list[list[Question]]:
    """The batches' questions, each used once; labels are wrong at the annotators' rate."""
    rng = random.Random(0)  # noqa: S311 (no secret)
    pools: dict[bool, list[Question]] = {True: [], False: []}
    for question in make_questions(n_other=0):
        pools[question.subject == READING].append(question)
    drawn = []
    for batch in BATCHES:
        n_reading = round(batch.reading * size)
        chosen = [pools[True].pop() for _ in range(n_reading)]
        chosen += [pools[False].pop() for _ in range(size - n_reading)]
        drawn.append([labelled(question, batch.annotators, rng) for question in chosen])
    return drawn


def labelled(question: Question, accuracy: float, rng: random.Random) -> Question:
    """The question with an annotator's answer."""
    if rng.random() < accuracy:
        return question
    wrong = [index for index in range(len(question.choices)) if index != question.answer]
    return replace(question, answer=rng.choice(wrong))


def outcome(summary: dict[str, Any]) -> str:
    """What a run did, in one word."""
    if summary["branch"] == "none":
        return "stopped"
    return "promoted" if summary["promoted"] else "refused"


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def main() -> int:
    """Run the stream, print what happened, and fail where a run did something else than expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for stream, champion and runs")
    parser.add_argument("--size", type=int, default=600, help="questions of a batch")
    given = parser.parse_args()
    out = given.out.absolute()
    if (out / "champion").exists():
        parser.error(f"{out} holds an earlier stream; name another folder")
    runs = []
    for number, (batch, questions) in enumerate(zip(BATCHES, draw_batches(given.size), strict=True), start=1):
        write_questions(questions, out / "stream" / f"batch-{number}.parquet")
        parameters = {
            "stream": str(out / "stream"),
            "champion": str(out / "champion"),
            "model": str(embedded_model()),
            **SETTINGS,
            **batch.changes,
        }
        started_s = time.monotonic()
        summary = run_local(parameters, out / "runs" / str(number), pipeline="recalibrate")
        figures = ("accuracy", "mean_confidence", "conf_ece")
        runs.append(
            {
                "batch": number,
                "did": outcome(summary),
                "expected": batch.expected,
                "regime": summary["regime"],
                "branch": summary["branch"],
                "before": {name: summary["before"][name] for name in figures},
                "after": {name: summary["after"][name] for name in figures},
                "reasons": summary["reasons"],
                "seconds": round(time.monotonic() - started_s, 1),
            }
        )
        print(f"batch {number}: {runs[-1]['did']}, expected {batch.expected}", file=sys.stderr)
    print(
        json.dumps(
            {"environment": environment(), "size": given.size, "settings": SETTINGS, "runs": runs}, indent=2
        )
    )
    return 0 if all(run["did"] == run["expected"] for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())

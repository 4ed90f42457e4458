"""How often do the intervals of the other figures hold the truth, where questions depend on each other too?

    python benchmarks/figure_coverage.py [--runs 300] [--resamples 400]

prints one JSON object: by design, for each figure of `calib_core.metrics.measure` that has an interval, the
share of runs whose 95 % interval holds the population's value. In the designs with groups (each question
twice; a few subjects, drawn again in every run, some easier than others) intervals are made both ways: with
the questions taken together by their group, and as if each stood alone. Half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from checkout import commit

from calib_core.metrics.summary import measure
from calib_core.predictions.table import Predictions

OPTIONS = 4
FIGURES = (
    "accuracy",
    "mean_confidence",
    "conf_ece",
    "debiased_ece",
    "cw_ece",
    "brier",
    "nll_nats",
    "auroc",
    "aurc",
)
TRUTH_OF = {"debiased_ece": "conf_ece"}
LARGE = 400_000


@dataclass(frozen=True, kw_only=True)
class Design:
    """How questions are drawn, and what the model makes of them.

    Attributes:
        name: what the output calls it.
        n: rows of a table.
        signal: how far the right option's evidence lies from the others': the model's accuracy.
        sharpness: of the model; 1 is calibrated, more is too sure.
        twice: whether each question is there two times.
        subjects: how many subjects a table has; 0 where questions are independent.
        spread: standard deviation of the log of a subject's signal.
    """

    name: str
    n: int
    signal: float = 1.55
    sharpness: float = 1.0
    twice: bool = False
    subjects: int = 0
    spread: float = 0.4

    def drawn(self, rng: np.random.Generator, n: int, subjects: int) -> Predictions:
        """A table of n rows; with `subjects` of as many, newly drawn."""
        rows = n // 2 if self.twice else n
        labels = rng.integers(0, OPTIONS, rows)
        subject = rng.integers(0, subjects, rows) if subjects else np.arange(rows)
        ease = np.exp(self.spread * rng.standard_normal(subjects))[subject] if subjects else np.ones(rows)
        evidence = (self.signal * ease)[:, None] * np.eye(OPTIONS)[labels]
        logits = self.sharpness * self.signal * (evidence + rng.standard_normal((rows, OPTIONS)))
        index = np.repeat(np.arange(rows), 2 if self.twice else 1)
        return Predictions(
            ids=tuple(map(str, range(len(index)))),
            labels=labels[index],
            logits=logits[index].astype(np.float32),
            n_options=np.full(len(index), OPTIONS),
            subjects=(None,) * len(index),
            groups=tuple(f"g{value}" for value in subject[index]),
        )


DESIGNS = (
    *(Design(name="calibrated", n=n) for n in (300, 1000)),
    *(Design(name="too sure", n=n, sharpness=2.5) for n in (300, 1000)),
    *(Design(name="accuracy 0.95", n=n, signal=2.6) for n in (300, 1000)),
    *(Design(name="accuracy 0.98, too sure", n=n, signal=3.1, sharpness=2.5) for n in (300, 1000)),
    Design(name="accuracy 0.3", n=300, signal=0.3, sharpness=4.0),
    Design(name="each question twice", n=1000, sharpness=1.5, twice=True),
    *(Design(name=f"{k} random subjects", n=1000, sharpness=1.5, subjects=k) for k in (10, 30, 57)),
)


def coverage(design: Design, runs: int, resamples: int) -> dict[str, Any]:
    """Share of intervals that hold the population's figures."""
    large = design.drawn(np.random.default_rng(1), LARGE, LARGE // 100 if design.subjects else 0)
    known = measure(large, cluster_by="none", n_resamples=2).to_dict()
    truth = {name: known[TRUTH_OF.get(name, name)]["value"] for name in FIGURES}
    ways = ("group", "none") if design.twice or design.subjects else ("none",)
    held = {way: dict.fromkeys(FIGURES, 0) for way in ways}
    rng = np.random.default_rng(2)
    for _ in range(runs):
        table = design.drawn(rng, design.n, design.subjects)
        for way in ways:
            found = measure(table, cluster_by=way, n_resamples=resamples).to_dict()
            for name in FIGURES:
                span = found[name]
                held[way][name] += span is not None and span["low"] <= truth[name] <= span["high"]
    shares = {way: {name: count / runs for name, count in counts.items()} for way, counts in held.items()}
    print(design.name, design.n, shares, file=sys.stderr, flush=True)
    return {**vars(design), "truth": truth, "coverage": shares}


def main() -> None:
    """Run everything and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=400)
    given = parser.parse_args()
    result = {
        "environment": {
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "machine": platform.machine(),
            "commit": commit(),
        },
        "runs": given.runs,
        "resamples": given.resamples,
        "designs": [coverage(design, given.runs, given.resamples) for design in DESIGNS],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

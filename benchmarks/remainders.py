"""What should the options below the top one have, once the top one has its true accuracy?

    python benchmarks/remainders.py

prints one JSON object. In worlds where the true distribution over the options is known, targets are made from
prints one JSON object. In worlds where the true distribution over the options is known, targets are made of a
model's probabilities: the top option gets its true accuracy at that confidence, and the others the remainder
truth's entropy), its entropy, and the total variation between both. A minute on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from typing import Any, get_args

import numpy as np
import scipy
from checkout import commit
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import entr, softmax

from calib_core.decisions.target import Remainder, rank_preserving_target

Floats = NDArray[np.float64]

SIGNAL = 1.55  # how far the right option's evidence lies from the others': accuracy 0.72 of four options
SMALLEST = 1e-12

WORLDS = [
    {"options": options, "sharpness": sharpness, "noise": noise}
    for options in (4, 5, 10)
    for sharpness in (0.4, 1.0, 2.5, 8.0)
    for noise in (0.0, 1.0)
]
"""The model's logits are the true ones with `noise`, times `sharpness`: cautious below 1, too sure above."""


def figures(options: int, sharpness: float, noise: float, n: int) -> dict[str, dict[str, float]]:
    """Figures of every map in one world, and those of the truth."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, options, n)
    true = SIGNAL * (SIGNAL * np.eye(options)[labels] + rng.normal(size=(n, options)))
    p = softmax(sharpness * (true + noise * rng.normal(size=true.shape)), axis=1)
    truth, top = softmax(true, axis=1), p.argmax(axis=1)
    order = np.argsort(p.max(axis=1))
    top_conf = np.empty(n)
    top_conf[order] = isotonic_regression(truth[np.arange(n), top][order]).x
    top_conf = np.maximum(top_conf, 1 / options)
    maps = {name: rank_preserving_target(p, top_conf, remainder=name) for name in get_args(Remainder)}
    return {name: against(truth, target) for name, target in {"truth": truth, **maps}.items()}


def against(truth: Floats, target: Floats) -> dict[str, float]:
    """A target's figures."""
    return {
        "nll_nats": float(-(truth * np.log(np.maximum(target, SMALLEST))).sum(axis=1).mean()),
        "entropy_nats": float(entr(target).sum(axis=1).mean()),
        "total_variation": float(np.abs(truth - target).sum(axis=1).mean() / 2),
    }


def main() -> None:
    """Run everything and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=20_000)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "environment": {
            "commit": commit(),
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "machine": platform.machine(),
        },
        "questions": given.questions,
        "worlds": [{**world, "figures": figures(**world, n=given.questions)} for world in WORLDS],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

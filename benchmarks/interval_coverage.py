"""How often do the ECE intervals hold the true ECE, and how often is an equal ECE taken for a fall?

Draws tables from models whose true calibration curve is known, asks for 95 % intervals, and counts, in JSON.

    python benchmarks/interval_coverage.py [--runs 300] [--resamples 400] [--sizes 300 1000 4000]

About half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from checkout import commit
from numpy.typing import NDArray
from scipy.stats import norm

from calib_core.metrics.binning import bin_index
from calib_core.metrics.gaps import bin_gaps, debiased_ece_interval, gap_sum_change

Floats = NDArray[np.float64]
N_BINS = 10
LARGE = 2_000_000  # rows that stand for the population


def beta_conf(a: float, b: float) -> Callable[[np.random.Generator, int], Floats]:
    """Confidences in [1/4, 1] from a scaled beta distribution."""
    return lambda rng, n: 0.25 + 0.75 * rng.beta(a, b, n)


def alternating(conf: Floats) -> Floats:
    """True accuracy 0.03 above and below the confidence in turn, bin by bin."""
    return conf + 0.03 * np.where(bin_index(conf, N_BINS) % 2, 1, -1)


def uneven(conf: Floats) -> Floats:
    """Calibrated below 0.6, slightly overconfident above, far off above 0.9."""
    return np.where(conf > 0.9, conf - 0.6, np.where(conf > 0.6, conf - 0.1, conf))


# name: distribution of confidences (mean 0.7, or near 1) and true accuracy given the confidence
WORLDS: dict[str, tuple[Callable[[np.random.Generator, int], Floats], Callable[[Floats], Floats]]] = {
    "calibrated": (beta_conf(1.8, 1.2), lambda c: c),
    "calibrated, confident": (beta_conf(8, 0.5), lambda c: c),
    "overconfident by 0.03": (beta_conf(1.8, 1.2), lambda c: c - 0.03),
    "off by 0.03 both ways": (beta_conf(1.8, 1.2), alternating),
    "overconfident by 0.1": (beta_conf(1.8, 1.2), lambda c: c - 0.1),
    "collapsed, off by 0.6": (beta_conf(8, 0.5), lambda c: c - 0.6),
    "uneven": (beta_conf(1, 1), uneven),
}
# overconfidence of the model before and after, on the same questions
PAIRS = ((0.0, 0.0), (0.03, 0.03), (0.1, 0.1), (0.6, 0.03), (0.1, 0.0), (0.1, 0.03), (0.0, 0.05))


def true_ece(conf: Floats, accuracy: Floats) -> float:
    """Binned ECE with the labels' noise taken out."""
    return float(np.abs(np.bincount(bin_index(conf, N_BINS), accuracy - conf, N_BINS)).sum() / len(conf))


def single(name: str, n: int, runs: int, resamples: int) -> dict[str, Any]:
    """Coverage of the interval of the debiased ECE of one model."""
    draw, accuracy_of = WORLDS[name]
    rng = np.random.default_rng(1)
    conf = draw(rng, LARGE)
    truth = true_ece(conf, np.clip(accuracy_of(conf), 0, 1))
    limits = []
    for _ in range(runs):
        conf = draw(rng, n)
        correct = rng.random(n) < accuracy_of(conf)
        interval = debiased_ece_interval(conf, correct, n_bins=N_BINS, n_resamples=resamples)
        limits.append((interval.low, interval.high))
    low, high = np.array(limits).T
    return {
        "world": name,
        "n": n,
        "true_ece": truth,
        "coverage": float(((low <= truth) & (truth <= high)).mean()),
        "truth_above": float((high < truth).mean()),
        "truth_below": float((low > truth).mean()),
        "mean_upper_limit": float(high.mean()),
        "mean_width": float((high - low).mean()),
    }


def draw_pair(
    rng: np.random.Generator, n: int, gaps: tuple[float, float]
) -> list[tuple[Floats, Floats, Floats]]:
    """(conf, correct, accuracy) of two models whose confidences and mistakes go together."""
    ease, luck = rng.normal(size=n), rng.random(n)
    models = []
    for gap in gaps:
        conf = 0.25 + 0.75 * norm.cdf(0.8 * ease + 0.6 * rng.normal(size=n) + 0.4)
        accuracy = np.clip(conf - gap, 0, 1)
        own_luck = np.where(rng.random(n) < 0.7, luck, rng.random(n))
        models.append((conf, (own_luck < accuracy).astype(np.float64), accuracy))
    return models


def paired(gaps: tuple[float, float], n: int, runs: int, resamples: int) -> dict[str, Any]:
    """Coverage of the paired interval of the ECE change, and how often it lies below zero."""
    rng = np.random.default_rng(2)
    before, after = (true_ece(conf, accuracy) for conf, _, accuracy in draw_pair(rng, LARGE, gaps))
    limits = []
    for _ in range(runs):
        rows = [bin_gaps(conf, correct, n_bins=N_BINS) for conf, correct, _ in draw_pair(rng, n, gaps)]
        interval = gap_sum_change(*rows, n_resamples=resamples)
        limits.append((interval.low, interval.high))
    low, high = np.array(limits).T
    return {
        "overconfident_before": gaps[0],
        "overconfident_after": gaps[1],
        "n": n,
        "true_change": after - before,
        "coverage": float(((low <= after - before) & (after - before <= high)).mean()),
        "fall_shown": float((high < 0).mean()),
        "mean_width": float((high - low).mean()),
    }


def main() -> None:
    """Run everything and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 1000, 4000])
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
        "single": [single(name, n, given.runs, given.resamples) for name in WORLDS for n in given.sizes],
        "paired": [paired(gaps, n, given.runs, given.resamples) for gaps in PAIRS for n in given.sizes],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

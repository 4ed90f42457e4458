"""How near to the truth are the E-step's target confidences, by which estimator?

    python benchmarks/target_estimators.py [--worlds 200] [--sizes 200 400 800]

prints one JSON object: in seven kinds of models, of which the accuracy at each confidence is known, the mean
of |target - accuracy| over fresh questions, with its standard error over worlds, for each estimator of
`calib_core.decisions.levels`, for the choice among them (`chosen`: what training uses) and for three that
were tried and left out. Every world draws its own questions and outcomes. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from checkout import commit
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit
from scipy.stats import norm

from calib_core.decisions.levels import ESTIMATORS, estimate_bin_targets, log_odds
from calib_core.metrics.figures import auroc

Floats = NDArray[np.float64]
Drawn = tuple[Floats, Floats]
Curve = Callable[[Floats], Floats]
Fit = Callable[[Floats, Floats], Curve]

GUESS = 0.25  # four options: no target is lower
LARGE = 20_000


def collapsed(rng: np.random.Generator, n: int) -> Drawn:
    """Nearly all confidence above 0.9, where accuracy goes from 0.3 to 0.95 all the same."""
    z = rng.normal(size=n)
    return 0.25 + 0.75 * expit(5 + 2 * z), 0.25 + 0.7 * expit(0.2 + 1.3 * z)


def wide(rng: np.random.Generator, n: int) -> Drawn:
    """Every confidence alike, too high in the middle."""
    conf = rng.uniform(0.25, 1.0, n)
    return conf, 0.25 + (conf - 0.25) ** 2 / 0.75


def step(rng: np.random.Generator, n: int) -> Drawn:
    """Accuracy jumps from 0.4 to 0.85 at a confidence of 0.7, the edge of a bin of equal width."""
    conf = 0.25 + 0.75 * rng.beta(1.8, 1.2, n)
    return conf, np.where(conf >= 0.7, 0.85, 0.4)


def calibrated(rng: np.random.Generator, n: int) -> Drawn:
    """As right as it is sure."""
    conf = 0.25 + 0.75 * rng.beta(1.8, 1.2, n)
    return conf, conf


def flat(rng: np.random.Generator, n: int) -> Drawn:
    """As often right whatever it says."""
    conf = 0.25 + 0.75 * rng.beta(3.0, 1.0, n)
    return conf, np.full(n, 0.42)


def half_known(rng: np.random.Generator, n: int) -> Drawn:
    """Half of the questions known for sure, the others too sure: two humps."""
    known = rng.random(n) < 0.5
    z = np.where(known, 6 + rng.normal(size=n), 1.5 + 1.5 * rng.normal(size=n))
    share = norm.pdf(z, 6, 1) / (norm.pdf(z, 6, 1) + norm.pdf(z, 1.5, 1.5))
    return 0.25 + 0.75 * expit(z), 0.97 * share + 0.45 * (1 - share)


def cautious(rng: np.random.Generator, n: int) -> Drawn:
    """Hardly any confidence above 0.5, where accuracy goes from 0.3 to 0.95."""
    z = rng.normal(size=n)
    return 0.25 + 0.3 * expit(z - 0.5), 0.25 + 0.74 * expit(0.6 + 1.5 * z)


WORLDS = (collapsed, wide, step, calibrated, flat, half_known, cautious)


def isotonic(conf: Floats, correct: Floats) -> Curve:
    """The least-squares monotone fit of the outcomes, question by question."""
    order = np.argsort(conf, kind="stable")
    fitted = isotonic_regression(correct[order]).x
    return lambda values: np.interp(values, conf[order], fitted)


def one_slope(conf: Floats, correct: Floats) -> Curve:
    """Platt scaling: a logistic curve in the log odds, as a monotone spline with a single piece."""
    return spline(conf, correct, pieces=1)


def spline(conf: Floats, correct: Floats, *, pieces: int = 12, penalty: float = 0.3) -> Curve:
    """A logistic monotone spline of first order on the log odds, with knots at quantiles."""
    knots = np.unique(np.quantile(log_odds(conf), np.linspace(0, 1, pieces + 1)))

    def basis(values: Floats) -> Floats:
        return np.clip((log_odds(values)[:, None] - knots[:-1]) / np.diff(knots), 0, 1)

    x = basis(conf)

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits, slopes, bends = weights[0] + x @ weights[1:], weights[1:], np.diff(weights[1:])
        value = np.logaddexp(0, logits).sum() - correct @ logits
        value += penalty * ((slopes**2).sum() / 4 + 2 * (bends**2).sum())
        residual = expit(logits) - correct
        gradient = x.T @ residual + penalty * slopes / 2
        gradient[1:] += 4 * penalty * bends
        gradient[:-1] -= 4 * penalty * bends
        return float(value), np.concatenate([[residual.sum()], gradient])

    bounds = [(None, None), *[(0, None)] * x.shape[1]]
    weights = scipy.optimize.minimize(
        loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds
    ).x
    return lambda values: expit(weights[0] + basis(values) @ weights[1:])


FITS: dict[str, Fit] = {
    **{
        name: lambda conf, correct, fit=fit: fit(conf, correct).confidence_for
        for name, fit in ESTIMATORS.items()
    },
    "chosen": lambda conf, correct: estimate_bin_targets(conf, correct).confidence_for,
    "isotonic": isotonic,
    "Platt": one_slope,
    "spline": spline,
}


def errors(world: Callable[[np.random.Generator, int], Drawn], n: int, worlds: int) -> dict[str, Any]:
    """Mean |target - accuracy| of every estimator in one kind of world, and the AUROC of its targets."""
    everywhere, truth = world(np.random.default_rng(1), LARGE)
    right = np.random.default_rng(2).random(LARGE) < truth
    rng = np.random.default_rng(3)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in FITS}
    choices: Counter[str] = Counter()
    for _ in range(worlds):
        conf, accuracy = world(rng, n)
        correct = (rng.random(n) < accuracy).astype(np.float64)
        for name, fit in FITS.items():
            targets = np.maximum(fit(conf, correct)(everywhere), GUESS)
            found[name].append((float(np.abs(targets - truth).mean()), auroc(targets, right)))
        choices[estimate_bin_targets(conf, correct).estimator] += 1
    figures = {}
    today = np.array(found["equal-width bins"])[:, 0]
    for name, values in found.items():
        error, order = np.array(values).T
        more = error - today
        figures[name] = {
            "error": float(error.mean()),
            "standard_error": float(error.std() / np.sqrt(worlds)),
            "more_than_equal_width": float(more.mean()),
            "standard_error_of_more": float(more.std() / np.sqrt(worlds)),
            "auroc": float(order.mean()),
        }
    print(world.__name__, n, {name: round(f["error"], 4) for name, f in figures.items()}, file=sys.stderr)
    return {
        "world": world.__name__,
        "n": n,
        "auroc_of_the_truth": auroc(truth, right),
        "estimators": figures,
        "chosen": dict(choices),
    }


def main() -> None:
    """Run everything and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 400, 800])
    given = parser.parse_args()
    result = {
        "environment": {
            "commit": commit(),
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "machine": platform.machine(),
        },
        "worlds": given.worlds,
        "errors": [errors(world, n, given.worlds) for n in given.sizes for world in WORLDS],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""How often is the regime test right, where the truth is known?

    python benchmarks/regime_rates.py --trials 200

prints one JSON object: per case the share of trials that ended in each regime. Every trial draws its own
questions, labels and bootstrap. A true ECE in a case's name is the model's on 100,000 other questions, with
labels replaced by their expectation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import brentq

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from checkout import commit
from synthetic import World, make_world, memorised, tempered

from calib_core.decisions.bounds import regime_test, required_examples
from calib_core.decisions.result import RegimeResult
from calib_core.metrics.binning import bin_index
from calib_core.predictions.table import Predictions

Model = Callable[[World], Predictions]


@dataclass(frozen=True)
class Case:
    """A world and a model in it: the model on the questions trained on, and on fresh ones."""

    name: str
    n: int
    spread: float
    on_fit: Model
    on_heldout: Model
    options: tuple[int, ...] = (4,)
    target_ece: float = 0.08

    def run(self, trial: int, n_resamples: int = 1000) -> RegimeResult:
        """One trial: fresh questions, fresh labels, fresh resamples."""
        fit, heldout = (
            make_world(self.n, 2 * trial + k, options=self.options, spread=self.spread) for k in (0, 1)
        )
        return regime_test(
            self.on_fit(fit),
            self.on_heldout(heldout),
            target_ece=self.target_ece,
            n_resamples=n_resamples,
            seed=trial,
        )


def with_temperature(temperature: float) -> Model:
    """The target q with its logits divided by a temperature, whatever the labels."""
    return lambda world: world.predictions(tempered(world.q, temperature))


def with_memory(temperature: float, share: float) -> Model:
    """The same, but a share of the questions' labels is known by heart."""

    def model(world: World) -> Predictions:
        p = tempered(world.q, temperature)
        known = int(share * len(p))  # rows are independent draws, so that any of them will do
        p[:known] = memorised(p[:known], world.labels[:known], 0.9)
        return world.predictions(p)

    return model


def true_ece(temperature: float, spread: float, *, n: int = 100_000) -> float:
    """Population ECE of q at a temperature, in 10 bins."""
    world = make_world(n, 10**6, spread=spread)
    p = tempered(world.q, temperature)
    gaps = world.q[np.arange(n), p.argmax(axis=1)] - p.max(axis=1)
    bins = bin_index(np.minimum(p.max(axis=1), 1.0), 10)
    return float(np.abs(np.bincount(bins, weights=gaps)).sum() / n)


def temperature_for(ece: float, spread: float) -> float:
    """Temperature at or below 1 at which q's ECE is `ece`."""
    if ece == 0:
        return 1.0
    return float(brentq(lambda t: true_ece(t, spread) - ece, 0.1, 1.0, xtol=1e-3))


def cases() -> list[Case]:
    """The regimes at N = 1,000, and given true ECEs at a mean confidence near 0.8."""
    q, sharp = with_temperature(1.0), with_temperature(0.5)
    needed = required_examples(0.08)
    found = [
        Case("q itself", 1000, 2.0, q, q),
        Case("q itself, 2 to 6 options", 1000, 2.0, q, q, options=(2, 3, 4, 5, 6)),
        Case("q tempered by 0.5", 1000, 2.0, sharp, sharp),
        Case("q tempered by 0.5, 2 to 6 options", 1000, 2.0, sharp, sharp, options=(2, 3, 4, 5, 6)),
        Case("memoriser of labels, else tempered by 0.5", 1000, 2.0, with_memory(0.5, 1.0), sharp),
        Case("memoriser of half the labels", 1000, 2.0, with_memory(0.5, 0.5), sharp),
        Case("memoriser, calibrated on fresh questions", 1000, 2.0, with_memory(1.0, 1.0), q),
        Case(f"q itself, N = required_examples(0.08) = {needed}", needed, 2.0, q, q),
    ]
    for ece in (0.0, 0.03, 0.05, 0.08, 0.12):
        spread = {0.0: 3.4, 0.03: 3.0, 0.05: 2.8, 0.08: 2.4, 0.12: 2.1}[ece]
        model = with_temperature(temperature_for(ece, spread))
        found += [Case(f"true ECE {ece:g}, N = {n}", n, spread, model, model) for n in (800, 1000)]
    return found


def environment() -> dict[str, object]:
    """Where the figures come from."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Run all cases and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    figures = []
    for case in cases():
        started = time.perf_counter()
        results = [case.run(trial) for trial in range(trials)]
        regimes = Counter(result.regime for result in results)
        figures.append(
            {
                "case": case.name,
                "mean_confidence_heldout": float(np.mean([r.mean_confidence_heldout.value for r in results])),
                "mean_accuracy_heldout": float(np.mean([r.accuracy_heldout.value for r in results])),
                "rates": {regime: count / trials for regime, count in sorted(regimes.items())},
                "undecided": sum(result.undecided for result in results) / trials,
                "seconds_per_trial": (time.perf_counter() - started) / trials,
            }
        )
        print(f"{case.name}: {figures[-1]['rates']}", file=sys.stderr)
    print(json.dumps({"environment": environment(), "trials": trials, "cases": figures}, indent=2))


if __name__ == "__main__":
    main()

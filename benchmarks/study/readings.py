"""One run's predictions read in several ways: as they are, with one temperature, with a bias per letter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from calib_core.decisions.temperature import apply_temperature, fit_temperature
from calib_core.metrics.summary import measure
from calib_core.predictions.table import Predictions

Floats = NDArray[np.float64]

READINGS = ("raw", "default", "temperature", "vector")
"""`default` is what the library serves: with the temperature that it recorded, where it recorded one."""


def read(tables: Mapping[str, Predictions], recorded: float, *, n_resamples: int) -> dict[str, Any]:
    """Figures by reading, by set of questions.

    Args:
        tables: predictions by fold, as `evaluate` wrote them: divided by the recorded temperature.
        recorded: that temperature.
        n_resamples: bootstrap resamples of the intervals.

    Returns:
        By reading: figures by set (`test`, `out of domain: NAME`); and the temperature that was fitted.
    """
    raw = {name: apply_temperature(table, 1 / recorded) for name, table in tables.items()}
    temperature = fit_temperature(raw["calibration"])
    scale, bias = fit_vector(raw["calibration"])
    read_as = {
        "raw": raw,
        "default": dict(tables),
        "temperature": {name: apply_temperature(table, temperature) for name, table in raw.items()},
        "vector": {name: apply_vector(table, scale, bias) for name, table in raw.items()},
    }
    return {
        "temperature": temperature,
        "figures": {
            reading: {
                name: measure(part, n_resamples=n_resamples).to_dict()
                for name, part in question_sets(folds).items()
            }
            for reading, folds in read_as.items()
        },
    }


def question_sets(folds: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The test fold, and the out-of-domain fold by what stands before the slash in its subjects."""
    found = {"test": folds["test"]}
    if (table := folds.get("out_of_domain")) is not None:
        names = np.array([(subject or "all").partition("/")[0] for subject in table.subjects])
        for name in np.unique(names):
            found[f"out of domain: {name}"] = table.subset(np.flatnonzero(names == name))
    return found


def fit_vector(table: Predictions) -> tuple[float, Floats]:
    """One factor for all logits and a bias per letter, by NLL with a standard normal prior on the biases.

    Source: vector scaling of Guo et al. 2017, section 4.2, with one factor for all letters.
    """
    k = table.logits.shape[1]
    rows = np.arange(len(table))
    logits = np.where(np.isfinite(table.logits), table.logits, -1e9).astype(np.float64)

    def loss(weights: Floats) -> tuple[float, Floats]:
        scaled = weights[0] * logits + weights[1:]
        value = -log_softmax(scaled, axis=1)[rows, table.labels].sum() + (weights[1:] ** 2).sum() / 2
        residual = softmax(scaled, axis=1)
        residual[rows, table.labels] -= 1
        slope = (residual * np.where(logits > -1e8, logits, 0.0)).sum()
        return float(value), np.concatenate([[slope], residual.sum(axis=0) + weights[1:]])

    start = np.concatenate([[1.0], np.zeros(k)])
    bounds = [(1e-2, 1e2), *[(None, None)] * k]
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(weights[0]), weights[1:]


def apply_vector(table: Predictions, scale: float, bias: Floats) -> Predictions:
    """The predictions with their logits times the factor, plus the biases."""
    own = bias[: table.logits.shape[1]]
    own = np.pad(own, (0, table.logits.shape[1] - len(own)))  # letters that the calibration fold hasn't
    return replace(table, logits=(scale * table.logits + own).astype(np.float32))

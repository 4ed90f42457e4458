"""Temperature scaling, the baseline that every recalibration is measured against."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar

from calib_core.errors import CalibError, DataFormatError, NotEnoughDataError
from calib_core.predictions.table import Predictions
from calib_core.predictions.temperature import apply_temperature

__all__ = ["apply_temperature", "cross_fitted", "fit_temperature"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-2, 1e2

SAME_LOGITS = 1e-5
"""Logits this close together, as a share of the largest, are the same: float32 keeps seven digits."""


def fit_temperature(predictions: Predictions) -> float:
    """The temperature in [0.01, 100] that gives the labels the lowest NLL.

    The NLL is convex in 1/t, so it has one minimum in log t too, and a bounded scalar search finds it. Where
    the best temperature lies beyond the limits (all top options right: colder is always better), the limit is
    returned.

    Args:
        predictions: rows that neither training nor the test has touched: the calibration fold.

    Raises:
        NotEnoughDataError: no rows.
        DataFormatError: a row has no label.
        CalibError: the search didn't converge.

    Source: Guo et al. 2017, section 4.2.

    Example:
        >>> sure = Predictions.from_probs([[0.99, 0.01]] * 4, [0, 0, 0, 1])
        >>> temperature = fit_temperature(sure)
        >>> round(temperature, 2), apply_temperature(sure, temperature).confidence().round(3).tolist()
        (4.18, [0.75, 0.75, 0.75, 0.75])
    """
    if not len(predictions):
        raise NotEnoughDataError("no rows to fit a temperature on; give labelled predictions")
    if (predictions.labels < 0).any():
        row = int(np.argmax(predictions.labels < 0))
        raise DataFormatError(
            f"predictions: row {row + 1}, field 'label': unknown; fit a temperature on labelled rows"
        )
    rows = np.arange(len(predictions))
    top = predictions.logits.max(axis=1, keepdims=True).astype(np.float64)
    logits = predictions.logits.astype(np.float64) - top

    def nll(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, predictions.labels]).mean())

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-8, "maxiter": 500})
    if not found.success:
        raise CalibError(
            f"the temperature search stopped without converging ({found.message}); report this table"
        )
    # The search never tries the limits themselves.
    best = min((float(found.x), *bounds), key=nll)
    return min(max(math.exp(best), MIN_TEMPERATURE), MAX_TEMPERATURE)


def cross_fitted(predictions: Predictions, *, folds: int = 5) -> Predictions:
    """The predictions, each with the temperature that the rows of the other folds give.

    What a temperature fitted on all rows would promise on them is too good by a little; this is not. Row i
    belongs to fold `i mod folds`, so the result is the same in every process and every run.

    Args:
        predictions: labelled rows, at least two.
        folds: parts; each is scaled by the temperature of the rest.

    Raises:
        NotEnoughDataError: fewer than two rows.
        DataFormatError: a row has no label.
        CalibError: a search didn't converge.
    """
    n = len(predictions)
    if n < 2:
        raise NotEnoughDataError(f"a cross-fitted temperature needs two rows or more, received {n}")
    fold = np.arange(n) % min(folds, n)
    logits = predictions.logits.copy()
    for index in range(min(folds, n)):
        inside = np.flatnonzero(fold == index)
        temperature = fit_temperature(predictions.subset(np.flatnonzero(fold != index)))
        part = apply_temperature(predictions.subset(inside), temperature).logits
        logits[inside, : part.shape[1]] = part  # a part may have fewer options than the whole
    return replace(predictions, logits=logits)


def one_temperature_apart(before: Predictions, after: Predictions) -> bool:
    """Whether the second table is the first one with its logits divided by a positive number."""
    own = np.arange(before.logits.shape[1]) < before.n_options[:, None]
    x, y = (
        np.where(own, logits - logits.max(axis=1, keepdims=True), 0.0)
        for logits in (before.logits.astype(np.float64), after.logits.astype(np.float64))
    )
    square = float((x**2).sum())
    if square == 0:
        return not y.any()
    slope = float((x * y).sum()) / square
    largest = float(np.abs(y).max())
    return slope > 0 and float(np.abs(y - slope * x).max()) <= SAME_LOGITS * largest

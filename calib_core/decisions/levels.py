"""E-step: how often a model's top option is right, at each level of its confidence.

Three estimators are tried, and cross-validation takes the one whose targets lie nearest to what happened:
none is best for every model. A collapsed model has nearly all its confidence in the last of ten bins of equal
width, where these can't tell anything apart; a smooth curve bends where accuracy jumps. `benchmarks/
target_estimators.py` measures all of them where the truth is known, and docs/results.md has the figures.

Source: the E-step is that of Xiao et al. 2025, section 5 (bins of equal width); shrinkage, monotone fit, the
other estimators and the choice among them are this project's. Beta calibration: Kull et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from calib_core.errors import DataFormatError
from calib_core.metrics.binning import bin_index, check_conf_correct

Floats = NDArray[np.float64]

N_BINS = 10

PRIOR_STRENGTH = 5.0
"""Examples that the Beta prior at the overall accuracy counts for. The strength that fits a spread of bin
accuracies with standard deviation s about an overall accuracy a is a (1 - a) / s^2 - 1 (moments of the Beta
distribution): about 5 for bins that differ by 0.2, as those of models with 0.3 to 0.8 accuracy do."""

FOLDS = 5
"""Parts of the cross-validation; with fewer than twice as many examples bins of equal width are taken."""

_SURE = 1e-9  # no confidence counts as nearer to 0 or 1: log odds of about 21
_CURVE_KNOTS = 101


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfidenceTargets:
    """The confidence that each level of a model's confidence should have been.

    A piecewise linear function of the log odds of confidence, flat beyond the first and the last knot.

    Attributes:
        log_odds: log odds of confidence at the knots, (M,), rising.
        accuracy: target confidence at the knots, (M,), in [0, 1], never falling.
        estimator: name of the estimator in `ESTIMATORS`.
    """

    log_odds: Floats
    accuracy: Floats
    estimator: str

    def confidence_for(self, conf: ArrayLike) -> Floats:
        """Target confidence of each of these confidences, (N,) in [0, 1] -> (N,).

        Raises:
            DataFormatError: a confidence is not a number in [0, 1].
        """
        conf = np.asarray(conf, dtype=np.float64)
        check_unit(conf, "conf", conf.size)
        return np.interp(log_odds(conf), self.log_odds, self.accuracy)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values; `from_dict` reads it back exactly."""
        return {
            "log_odds": self.log_odds.tolist(),
            "accuracy": self.accuracy.tolist(),
            "estimator": self.estimator,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ConfidenceTargets:
        """Read what `to_dict` wrote.

        Raises:
            DataFormatError: a field is missing, or lengths don't fit.
        """
        try:
            knots, accuracy = (np.asarray(value[key], dtype=np.float64) for key in ("log_odds", "accuracy"))
            estimator = str(value["estimator"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataFormatError(
                f"target confidences: field {error} is missing or not numbers; estimate them again"
            ) from None
        if knots.ndim != 1 or not len(knots) or accuracy.shape != knots.shape:
            raise DataFormatError(
                f"target confidences: {knots.shape} log odds and {accuracy.shape} accuracies don't fit; "
                "estimate them again"
            )
        return cls(log_odds=knots, accuracy=accuracy, estimator=estimator)


def estimate_bin_targets(conf: ArrayLike, correct: ArrayLike) -> ConfidenceTargets:
    """E-step: the accuracy at each level of confidence, by the estimator that cross-validation prefers.

    The parts of the cross-validation are alike in confidence, and the same in whatever order the examples
    come. Of the `ESTIMATORS` the one with the lowest squared error of its targets for `correct` is taken, and
    fitted to all examples.

    Args:
        conf: top-option probabilities, (N,), in [0, 1].
        correct: 1 if the top option is the label, else 0, (N,).

    Returns:
        Targets; they never fall as confidence rises.

    Raises:
        DataFormatError: shapes don't fit, or values are out of range.
        NotEnoughDataError: no examples.

    >>> rng = np.random.default_rng(0)
    >>> conf = rng.uniform(0.5, 1, 4000)
    >>> targets = estimate_bin_targets(conf, rng.random(4000) < conf - 0.2)
    >>> targets.confidence_for([0.6, 0.9]).round(1).tolist()
    [0.4, 0.7]
    """
    conf, correct = check_conf_correct(conf, correct)
    if len(conf) < 2 * FOLDS:
        return equal_width_bins(conf, correct)
    part = np.empty(len(conf), dtype=np.int64)
    part[np.lexsort((correct, conf))] = np.arange(len(conf)) % FOLDS
    errors = [_cross_validated_error(fit, conf, correct, part) for fit in ESTIMATORS.values()]
    return list(ESTIMATORS.values())[int(np.argmin(errors))](conf, correct)


def beta_calibration(conf: Floats, correct: Floats) -> ConfidenceTargets:
    """A logistic curve in `log c` and `-log (1 - c)` with slopes that aren't negative: it never falls.

    The slopes, in standard deviations of their regressors, have a standard normal prior.

    Source: Kull et al. 2017, section 3; the prior is this project's.
    """
    odds = log_odds(conf)
    knots = np.unique(np.linspace(odds.min(), odds.max(), _CURVE_KNOTS))
    regressors = _beta_regressors(odds)
    mean, spread = regressors.mean(axis=0), regressors.std(axis=0) + 1e-12
    x = (regressors - mean) / spread

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = weights[0] + x @ weights[1:]
        value = np.logaddexp(0.0, logits).sum() - correct @ logits + (weights[1:] ** 2).sum() / 2
        residual = expit(logits) - correct
        return float(value), np.concatenate([[residual.sum()], x.T @ residual + weights[1:]])

    # Wherever the descent ends, the curve is one that never falls; cross-validation judges it.
    weights = minimize(
        loss, np.zeros(3), jac=True, method="L-BFGS-B", bounds=[(None, None), *[(0, None)] * 2]
    ).x
    logits = weights[0] + (_beta_regressors(knots) - mean) / spread @ weights[1:]
    return ConfidenceTargets(log_odds=knots, accuracy=_monotone(expit(logits)), estimator="beta")


def equal_mass_bins(conf: Floats, correct: Floats) -> ConfidenceTargets:
    """Accuracy of ten bins with as many examples each, and the line between their mean log odds.

    Equally confident examples are in one bin. Bins are shrunk and made monotone as in `equal_width_bins`.
    """
    odds = log_odds(conf)
    edges = np.quantile(odds, np.arange(1, N_BINS) / N_BINS)
    _, index, counts = np.unique(
        np.searchsorted(edges, odds, side="right"), return_inverse=True, return_counts=True
    )
    knots = np.bincount(index, weights=odds) / counts
    return ConfidenceTargets(
        log_odds=knots, accuracy=_bin_accuracies(index, counts, correct), estimator="equal-mass bins"
    )


def equal_width_bins(conf: Floats, correct: Floats) -> ConfidenceTargets:
    """Accuracy of ten bins of equal width: steps.

    A bin's accuracy is the mean of its Beta posterior, `(hits + PRIOR_STRENGTH * overall) / (n +
    PRIOR_STRENGTH)`. The least-squares monotone fit, weighted by each bin's examples, then irons out falls
    from bin to bin. A bin without examples takes the value that the fit has there: on the line between its
    filled neighbours, or the outermost filled bin's beyond them.
    """
    filled, index, counts = np.unique(bin_index(conf, N_BINS), return_inverse=True, return_counts=True)
    accuracy = np.interp(np.arange(N_BINS), filled, _bin_accuracies(index, counts, correct))
    edges = log_odds(np.linspace(0.0, 1.0, N_BINS + 1)[1:-1])
    return ConfidenceTargets(
        log_odds=np.stack([np.nextafter(edges, -np.inf), edges], axis=1).ravel(),
        accuracy=np.repeat(accuracy, 2)[1:-1],
        estimator="equal-width bins",
    )


Estimator = Callable[[Floats, Floats], ConfidenceTargets]

ESTIMATORS: dict[str, Estimator] = {
    "beta": beta_calibration,
    "equal-mass bins": equal_mass_bins,
    "equal-width bins": equal_width_bins,
}
"""What cross-validation chooses from."""


def log_odds(conf: Floats) -> Floats:
    """Log odds of confidences, those of 0 and 1 finite, (N,) -> (N,)."""
    conf = np.clip(conf, _SURE, 1.0 - _SURE)
    return np.asarray(np.log(conf) - np.log1p(-conf))


def check_unit(value: Floats, name: str, n: int) -> None:
    """Refuse what isn't n numbers in [0, 1].

    Raises:
        DataFormatError: the shape isn't (n,), or a value is out of range.
    """
    if value.shape != (n,):
        raise DataFormatError(f"{name}: expected {n} values, one per row, got shape {value.shape}")
    wrong = np.flatnonzero(~((value >= 0) & (value <= 1)))
    if len(wrong):
        raise DataFormatError(
            f"{name}: row {wrong[0]} holds {value.flat[wrong[0]]}, expected a number in [0, 1]"
        )


def _cross_validated_error(fit: Estimator, conf: Floats, correct: Floats, part: NDArray[np.int64]) -> float:
    targets = np.empty_like(conf)
    for k in range(FOLDS):
        inside = part == k
        targets[inside] = fit(conf[~inside], correct[~inside]).confidence_for(conf[inside])
    return float(((targets - correct) ** 2).mean())


def _bin_accuracies(index: NDArray[np.int64], counts: NDArray[np.int64], correct: Floats) -> Floats:
    hits = np.bincount(index, weights=correct)
    shrunk = (hits + PRIOR_STRENGTH * correct.mean()) / (counts + PRIOR_STRENGTH)
    return _monotone(isotonic_regression(shrunk, weights=counts.astype(np.float64)).x)


def _monotone(accuracy: Floats) -> Floats:
    """Without the falls and excesses that rounding makes."""
    return np.clip(np.maximum.accumulate(accuracy), 0.0, 1.0)


def _beta_regressors(odds: Floats) -> Floats:
    """`log c` and `-log (1 - c)` from log odds, (N,) -> (N, 2)."""
    return np.stack([-np.logaddexp(0.0, -odds), np.logaddexp(0.0, odds)], axis=1)

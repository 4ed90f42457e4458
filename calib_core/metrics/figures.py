"""Calibration, accuracy and selective-prediction figures from confidences, outcomes and probabilities.

Everything is float64 numpy, takes probabilities (logits are refused, never guessed at) and doesn't depend on
the order of the rows. `conf (N,)` is the top option's probability, `correct (N,)` whether the top option is
right.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct, idct

from calib_core.metrics.binning import (
    bin_index,
    check_conf_correct,
    check_probs_labels,
    debiased_gap_sum,
)
from calib_core.metrics.gaps import (
    bin_gaps,
    class_gaps,
    conf_ece_interval,
    gap_sum,
    mass_gaps,
)
from calib_core.metrics.interval import rising_root
from calib_core.metrics.means import wilson
from calib_core.metrics.selective import (
    OperatingPoint,
    RiskCoverage,
    auroc,
    risk_coverage,
    threshold_at_risk,
)
from calib_core.predictions.table import Predictions

__all__ = [
    "OperatingPoint",
    "ReliabilityBin",
    "RiskCoverage",
    "adaptive_ece",
    "auroc",
    "brier",
    "classwise_ece",
    "conf_ece",
    "debiased_ece",
    "mce",
    "nll_nats",
    "per_subject",
    "reliability_bins",
    "risk_coverage",
    "smooth_ece",
    "threshold_at_risk",
    "wilson",
]

SMOOTH_GRID = 4096  # cells; a bandwidth of 0.001 spans four of them


def conf_ece(conf: ArrayLike, correct: ArrayLike, *, n_bins: int = 10) -> float:
    """Expected calibration error of the top option's confidence, in [0, 1].

    sum_b (n_b / N) |mean correct - mean conf| over equal-width bins [m/M, (m+1)/M), the last one closed. On N
    rows a perfectly calibrated model shows about sum_b sqrt(2 acc_b (1 - acc_b) n_b / pi) / N, not 0: see
    `debiased_ece`.

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.
        n_bins: M.

    Raises:
        DataFormatError: wrong shapes, NaN, or values outside their range (logits, for instance).
        NotEnoughDataError: no rows.
        ConfigError: `n_bins` isn't a positive integer.

    Source: Naeini et al. 2015; Guo et al. 2017, equation 3; bins as in Xiao et al. 2025.

    Example:
        >>> round(conf_ece([0.5, 0.5, 0.5, 0.9, 1.0], [0, 1, 0, 1, 1], n_bins=2), 12)
        0.08
    """
    return gap_sum(bin_gaps(conf, correct, n_bins=n_bins))


def classwise_ece(probs: ArrayLike, labels: ArrayLike, *, n_bins: int = 10) -> float:
    """Class-wise expected calibration error, in [0, 1].

    (1/K) sum_k sum_b (n_kb / N) |freq(y = k) - mean p_k|, empty bins skipped. Options that a row hasn't got
    have probability 0 and add nothing.

    Args:
        probs: (N, K), rows sum to 1.
        labels: (N,) integers in 0..K-1.
        n_bins: equal-width bins.

    Raises:
        DataFormatError: wrong shapes, NaN, values outside [0, 1], rows that don't sum to 1, labels outside
            0..K-1.
        NotEnoughDataError: no rows.
        ConfigError: `n_bins` isn't a positive integer.

    Source: Kull et al. 2019, equation 3.

    Example:
        >>> round(classwise_ece([[0.8, 0.2], [0.6, 0.4]], [0, 1]), 12)  # gaps .2, -.6; -.2, .6
        0.4
    """
    return gap_sum(class_gaps(probs, labels, n_bins=n_bins))


def adaptive_ece(conf: ArrayLike, correct: ArrayLike, *, n_bins: int = 10) -> float:
    """ECE over bins of equal mass, in [0, 1].

    Rows are sorted by confidence and cut into `n_bins` runs whose sizes differ by at most one (fewer where N
    is smaller). Rows of one confidence that a cut divides share their outcomes evenly, so that their order
    doesn't matter.

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.
        n_bins: number of bins.

    Raises:
        DataFormatError: wrong shapes, NaN, or values outside their range.
        NotEnoughDataError: no rows.
        ConfigError: `n_bins` isn't a positive integer.

    Source: Nguyen & O'Connor 2015; Nixon et al. 2019.

    Example:
        >>> conf, correct = [0.52, 0.61, 0.70, 0.79, 0.83, 0.88, 0.93, 0.99], [1, 0, 1, 1, 0, 1, 1, 1]
        >>> round(adaptive_ece(conf, correct, n_bins=4), 12)
        0.17875
    """
    return gap_sum(mass_gaps(conf, correct, n_bins=n_bins))


def debiased_ece(conf: ArrayLike, correct: ArrayLike, *, n_bins: int = 10) -> float:
    """conf-ECE minus its estimated finite-sample bias, in [0, 1].

    In bin b the observed gap g_b = acc_b - conf_b carries binomial noise of s_b = sqrt(acc_b (1 - acc_b) /
    n_b), and E|g_b + s_b Z| - |g_b| is how much such noise adds. Kumar et al. estimate that expectation by
    drawing normals; here it is the folded normal's mean in closed form, so the figure is deterministic. What
    falls below 0 is returned as 0.

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.
        n_bins: equal-width bins.

    Raises:
        DataFormatError: wrong shapes, NaN, or values outside their range.
        NotEnoughDataError: no rows.
        ConfigError: `n_bins` isn't a positive integer.

    Source: Kumar, Liang & Ma 2019, *Verified Uncertainty Calibration*, section 5 (debiasing, l1 error).

    Example:
        >>> conf, correct = [0.7] * 100, [1] * 80 + [0] * 20
        >>> round(conf_ece(conf, correct), 6), round(debiased_ece(conf, correct), 6)
        (0.1, 0.09984)
    """
    conf64, correct64 = check_conf_correct(conf, correct)
    return debiased_gap_sum(conf64, correct64, n_bins)


def smooth_ece(conf: ArrayLike, correct: ArrayLike) -> float:
    """Smooth ECE, in [0, 1]: no bins, and a bandwidth that the data choose.

    The residuals correct - conf are smoothed with a Gaussian kernel of width sigma that is reflected at 0 and
    1; smECE_sigma is the integral of the result's absolute value, and the smooth ECE is the sigma at which
    smECE_sigma = sigma. The reflected kernel is diagonal under the cosine transform, so that one transform of
    the residuals on a fine grid serves every sigma.

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.

    Raises:
        DataFormatError: wrong shapes, NaN, or values outside their range.
        NotEnoughDataError: no rows.

    Source: Blasiok & Nakkiran 2023, *Smooth ECE*, definitions 1 and 2.

    Example:
        >>> conf, correct = [0.52, 0.61, 0.70, 0.79, 0.83, 0.88, 0.93, 0.99], [1, 0, 1, 1, 0, 1, 1, 1]
        >>> round(smooth_ece(conf, correct), 3)
        0.079
    """
    conf64, correct64 = check_conf_correct(conf, correct)
    residuals = (correct64 - conf64) / len(conf64)
    # Residuals are shared between the two nearest cell centres; beyond the outer centres reflection gives all
    # to one.
    position = np.clip(conf64 * SMOOTH_GRID - 0.5, 0, SMOOTH_GRID - 1)
    left = np.minimum(position.astype(np.int64), SMOOTH_GRID - 2)
    share = position - left
    mass = np.bincount(left, residuals * (1 - share), SMOOTH_GRID)
    mass += np.bincount(left + 1, residuals * share, SMOOTH_GRID)
    spectrum = dct(mass, norm="ortho")
    frequency = np.pi * np.arange(SMOOTH_GRID)

    def excess(sigma: float) -> float:
        return float(
            np.abs(idct(spectrum * np.exp(-((frequency * sigma) ** 2) / 2), norm="ortho")).sum() - sigma
        )

    # At 1, the largest error there is, rounding can leave an excess of 1e-16.
    return rising_root(lambda sigma: -excess(sigma), 0.0, 1.0)


def mce(conf: ArrayLike, correct: ArrayLike, *, n_bins: int = 10) -> float:
    """Maximum calibration error, the largest |accuracy - mean confidence| of a non-empty bin, in [0, 1].

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.
        n_bins: equal-width bins.

    Raises:
        DataFormatError: wrong shapes, NaN, or values outside their range.
        NotEnoughDataError: no rows.
        ConfigError: `n_bins` isn't a positive integer.

    Source: Naeini et al. 2015.
    """
    conf64, correct64 = check_conf_correct(conf, correct)
    index = bin_index(conf64, n_bins)
    counts = np.bincount(index, minlength=n_bins)
    gaps = np.bincount(index, correct64 - conf64, n_bins) / np.maximum(counts, 1)
    return float(np.abs(gaps).max())


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Multi-class Brier score, mean over rows of sum_k (p_k - 1[y = k])^2, in [0, 2].

    Args:
        probs: (N, K), rows sum to 1.
        labels: (N,) integers in 0..K-1.

    Raises:
        DataFormatError: wrong shapes, NaN, values outside [0, 1], rows that don't sum to 1, labels outside
            0..K-1.
        NotEnoughDataError: no rows.

    Source: Brier 1950.

    Example:
        >>> round(brier([[0.8, 0.2], [0.4, 0.6]], [0, 0]), 12)  # .08 and .72
        0.4
    """
    return float(_squared_distances(*check_probs_labels(probs, labels)).mean())


def brier_of_rows(predictions: Predictions) -> NDArray[np.float64]:
    """Each labelled row's Brier score, (N,) in [0, 2]; see `brier`."""
    return _squared_distances(predictions.probs(), predictions.labels)


def nll_of_rows(predictions: Predictions) -> NDArray[np.float64]:
    """Each labelled row's negative log-likelihood in nats, (N,), finite also where probabilities are not."""
    return np.asarray(-predictions.log_probs()[np.arange(len(predictions)), predictions.labels])


def _squared_distances(probs: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(axis=1))


def nll_nats(probs: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood of the right option in nats; infinite where one of them has probability 0.

    Args:
        probs: (N, K), rows sum to 1.
        labels: (N,) integers in 0..K-1.

    Raises:
        DataFormatError: wrong shapes, NaN, values outside [0, 1], rows that don't sum to 1, labels outside
            0..K-1.
        NotEnoughDataError: no rows.

    Example:
        >>> round(nll_nats([[0.5, 0.5], [0.25, 0.75]], [0, 0]), 6)  # ln 2 and ln 4
        1.039721
    """
    probs64, labels64 = check_probs_labels(probs, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(probs64[np.arange(len(labels64)), labels64]).mean())


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of a reliability diagram; figures are None where the bin is empty.

    Attributes:
        left: lower edge of the bin.
        right: upper edge.
        count: rows in it.
        mean_confidence: their mean confidence.
        accuracy: share of right rows.
        accuracy_low: lower limit of the accuracy's 95 % Wilson interval.
        accuracy_high: upper limit.
    """

    left: float
    right: float
    count: int
    mean_confidence: float | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the attributes by name."""
        return asdict(self)


def reliability_bins(conf: ArrayLike, correct: ArrayLike, *, n_bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """The `n_bins` bars of a reliability diagram, in order of confidence.

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.
        n_bins: equal-width bins.

    Raises:
        DataFormatError: wrong shapes, NaN, or values outside their range.
        NotEnoughDataError: no rows.
        ConfigError: `n_bins` isn't a positive integer.
    """
    conf64, correct64 = check_conf_correct(conf, correct)
    index = bin_index(conf64, n_bins)
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    bars = []
    for b in range(n_bins):
        rows = index == b
        count = int(rows.sum())
        figures: tuple[float | None, ...] = (None, None, None, None)
        if count:
            accuracy = float(correct64[rows].mean())
            figures = (float(conf64[rows].mean()), accuracy, *wilson(accuracy, count))
        bars.append(ReliabilityBin(float(edges[b]), float(edges[b + 1]), count, *figures))
    return tuple(bars)


def per_subject(
    predictions: Predictions, *, n_bins: int = 10, n_resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy, confidence and ECE of each subject, by name; rows without a subject come last, under None.

    Returns:
        One dictionary per subject: `subject`, `n`, `accuracy`, `mean_confidence` (numbers), `conf_ece`
        {value, low, high}. Empty where no row has a subject.

    Raises:
        DataFormatError: a row has no label.
        ConfigError: `n_bins` or `n_resamples` is out of range.
    """
    conf, correct = predictions.confidence(), predictions.correct()
    names = sorted({name for name in predictions.subjects if name is not None})
    if not names:
        return []
    subjects = np.array(predictions.subjects, dtype=object)
    rows = []
    for name in [*names, *([None] if None in predictions.subjects else [])]:
        own = np.array([subject == name for subject in subjects])
        interval = conf_ece_interval(
            conf[own],
            correct[own],
            n_bins=n_bins,
            clusters=predictions.subset(own).clusters(),
            n_resamples=n_resamples,
            seed=seed,
        )
        rows.append(
            {
                "subject": name,
                "n": int(own.sum()),
                "accuracy": float(correct[own].mean()),
                "mean_confidence": float(conf[own].mean()),
                "conf_ece": interval.to_dict(),
            }
        )
    return rows

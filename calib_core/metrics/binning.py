"""What metrics and intervals share: input checks, equal-width bins, and the noise of a bin's gap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf

from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError

ROW_SUM_TOLERANCE = 1e-4  # a float32 softmax over 26 options sums to 1 within 1e-6; logits miss by far more


def check_conf_correct(
    conf: ArrayLike, correct: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return confidences and outcomes as float64 (N,), or refuse them.

    Args:
        conf: (N,) probabilities in [0, 1].
        correct: (N,) booleans, or numbers that are 0 or 1.

    Raises:
        DataFormatError: shapes differ or aren't (N,), values are NaN or outside their range.
        NotEnoughDataError: no rows.
    """
    conf64, correct64 = _float64("conf", conf), _float64("correct", correct)
    if conf64.ndim != 1 or correct64.ndim != 1 or conf64.shape != correct64.shape:
        raise DataFormatError(
            f"conf {conf64.shape} and correct {correct64.shape} must both be (N,), one row per question"
        )
    if not conf64.size:
        raise NotEnoughDataError("conf is empty: a calibration figure needs at least one labelled row")
    _check_unit("conf", conf64)
    wrong = (correct64 != 0) & (correct64 != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataFormatError(f"correct must be 0 or 1, found {correct64[row]} in row {row + 1}")
    return conf64, correct64


def check_probs_labels(probs: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return option probabilities as float64 (N, K) and labels as int64 (N,), or refuse them.

    Args:
        probs: (N, K) probabilities in [0, 1], rows sum to 1; options that a row hasn't got are 0.
        labels: (N,) integers in 0..K-1.

    Raises:
        DataFormatError: shapes differ, values are NaN or outside their range, rows don't sum to 1 within
            1e-4.
        NotEnoughDataError: no rows.
    """
    probs64, label_array = _float64("probs", probs), np.asarray(labels)
    if probs64.ndim != 2 or label_array.shape != probs64.shape[:1]:
        raise DataFormatError(f"probs {probs64.shape} and labels {label_array.shape} must be (N, K) and (N,)")
    if not probs64.size:
        raise NotEnoughDataError("probs are empty: a calibration figure needs at least one labelled row")
    _check_unit("probs", probs64)
    off = np.abs(probs64.sum(axis=1) - 1) > ROW_SUM_TOLERANCE
    if off.any():
        row = int(np.argmax(off))
        raise DataFormatError(
            f"probs must sum to 1 over a row's options; row {row + 1} sums to {probs64[row].sum():.6g}: "
            "are these logits? take their softmax first"
        )
    if not np.issubdtype(label_array.dtype, np.integer):
        raise DataFormatError(f"labels must be integers, found {label_array.dtype}")
    outside = (label_array < 0) | (label_array >= probs64.shape[1])
    if outside.any():
        row = int(np.argmax(outside))
        raise DataFormatError(
            f"labels must lie in 0..{probs64.shape[1] - 1}, found {label_array[row]} in row {row + 1}; "
            "leave out rows without a label"
        )
    return probs64, label_array.astype(np.int64)


def bin_index(values: NDArray[np.float64], n_bins: int) -> NDArray[np.int64]:
    """Equal-width bin of each value in [0, 1]: bin m is [m/M, (m+1)/M), the last one closed.

    Args:
        values: float64, any shape, in [0, 1].
        n_bins: M, at least 1.

    Returns:
        int64 of the same shape, in 0..M-1.

    Raises:
        ConfigError: `n_bins` isn't a positive integer.

    Example:
        >>> bin_index(np.array([0.0, 0.1, 0.5, 1.0]), 10)
        array([0, 1, 5, 9])
    """
    check_n_bins(n_bins)
    # searchsorted on the edges themselves: values * n_bins rounds across an edge (0.29 * 100 is
    # 28.999999999999996).
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, n_bins - 1).astype(np.int64)


def check_n_bins(n_bins: int) -> None:
    """Refuse a number of bins that isn't a positive integer.

    Raises:
        ConfigError: it isn't.
    """
    if not isinstance(n_bins, int | np.integer) or isinstance(n_bins, bool) or n_bins < 1:
        raise ConfigError(f"n_bins must be a positive integer, received {n_bins!r}")


def folded_normal_mean(mean: NDArray[np.float64], sd: NDArray[np.float64]) -> NDArray[np.float64]:
    """E |mean + sd Z| for a standard normal Z, elementwise; |mean| where `sd` is 0.

    Source: Leone, Nelson & Nottingham 1961, equation 3.

    Example:
        >>> float(folded_normal_mean(np.array(0.0), np.array(1.0)))  # sqrt(2 / pi)
        0.7978845608028654
    """
    size = np.abs(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(sd > 0, size / sd, np.inf)
    return sd * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + size * erf(ratio / np.sqrt(2))


def debiased_gap_sum(
    conf: NDArray[np.float64],
    correct: NDArray[np.float64],
    n_bins: int,
    clusters: NDArray[np.int64] | None = None,
) -> float:
    """conf-ECE minus its bias as noise makes it, at least 0; see `metrics.debiased_ece`.

    Args:
        conf: float64 (N,) in [0, 1], checked.
        correct: float64 (N,), 0 or 1, checked.
        n_bins: equal-width bins.
        clusters: cluster of each row, (N,); None where rows are independent, and the noise of a bin's
            accuracy is binomial.
    """
    index = bin_index(conf, n_bins)
    counts = np.bincount(index, minlength=n_bins)
    divisor = np.maximum(counts, 1)
    accuracy = np.bincount(index, correct, n_bins) / divisor
    gap = np.bincount(index, correct - conf, n_bins) / divisor
    noise = np.sqrt(accuracy * (1 - accuracy) / divisor)
    if clusters is not None:
        cells, cell = np.unique(clusters * n_bins + index, return_inverse=True)
        sums = np.bincount(cell, correct - accuracy[index])
        noise = np.sqrt(np.bincount(cells % n_bins, sums**2, n_bins)) / divisor
    # |gap| minus its bias, E|gap + noise Z| - |gap|
    debiased = 2 * np.abs(gap) - folded_normal_mean(gap, noise)
    return max(0.0, float((counts * debiased).sum() / len(conf)))


def _float64(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "bfiu":
        raise DataFormatError(f"{name} must be numbers, found {array.dtype}")
    return array.astype(np.float64)


def _check_unit(name: str, values: NDArray[np.float64]) -> None:
    wrong = ~((values >= 0) & (values <= 1))  # also true for NaN
    if wrong.any():
        where: tuple[Any, ...] = np.unravel_index(int(np.argmax(wrong)), values.shape)
        raise DataFormatError(
            f"{name} must be probabilities in [0, 1], found {values[where]} in row {int(where[0]) + 1}: "
            "are these logits? take their softmax first"
        )

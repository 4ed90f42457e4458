"""Bootstrap intervals: a statistic is a function of row weights, so that a thousand resamples are a few products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calib_core.binning import bin_index, check_conf_correct, check_probs_labels, folded_normal_mean
from calib_core.errors import ConfigError, NotEnoughDataError

# Row weights (R, N), how often each of R resamples holds each row, to the statistic's values (R,).
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

CHUNK_ELEMENTS = 2**21  # 16 MB of float64 weights at a time


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: the figure on the data as they are.
        low: lower limit.
        high: upper limit.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """JSON form, `{"value", "low", "high"}`."""
        return asdict(self)


def resample_weights(n: int, *, n_resamples: int = 1000, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Yield chunks (R, N) of multinomial row weights; every row of a chunk sums to `n`, the R sum to `n_resamples`.

    Raises:
        NotEnoughDataError: `n` is 0.
        ConfigError: `n_resamples` is below 1.
    """
    if n < 1:
        raise NotEnoughDataError("no rows to resample: an interval needs labelled rows")
    if n_resamples < 1:
        raise ConfigError(f"n_resamples must be at least 1, received {n_resamples!r}")
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_ELEMENTS // n)
    for start in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - start)
        drawn = generator.integers(0, n, size=(size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def resample(statistic: Statistic, n: int, *, n_resamples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """The statistic's values on `n_resamples` bootstrap resamples of `n` rows, float64 (n_resamples,).

    The same seed, `n` and `n_resamples` give the same resamples, whatever the statistic: that is what pairs two of them.
    """
    chunks = resample_weights(n, n_resamples=n_resamples, seed=seed)
    return np.concatenate([statistic(weights) for weights in chunks])


def on_data(statistic: Statistic, n: int) -> float:
    """The statistic on the rows as they are, each counted once."""
    return float(statistic(np.ones((1, n)))[0])


def bootstrap_interval(
    statistic: Statistic, n: int, *, n_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a statistic of `n` rows.

    Right for means and other statistics without bias; an ECE is biased upwards and has `conf_ece_interval`.
    For a paired comparison let the statistic be the difference of two statistics of the same rows.

    Args:
        statistic: row weights (R, N) to values (R,), see `mean_statistic` and `ece_statistic`.
        n: number of rows.
        n_resamples: number of resamples.
        confidence: coverage aimed at, in (0, 1).
        seed: of the resamples.

    Raises:
        ConfigError: `confidence` or `n_resamples` is out of range.
        NotEnoughDataError: no rows.

    Source: Efron & Tibshirani 1993, chapter 13.
    """
    tail = tail_share(confidence)
    values = resample(statistic, n, n_resamples=n_resamples, seed=seed)
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(on_data(statistic, n), float(low), float(high))


def tail_share(confidence: float) -> float:
    """Share of the distribution beyond each limit, 0.025 for 0.95.

    Raises:
        ConfigError: `confidence` isn't in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, received {confidence!r}")
    return (1 - confidence) / 2


def mean_statistic(values: ArrayLike) -> Statistic:
    """The mean of `values` (N,) as a statistic of row weights."""
    column = np.asarray(values, dtype=np.float64)
    return lambda weights: (weights @ column) / weights.sum(axis=1)


def ece_statistic(conf: ArrayLike, correct: ArrayLike, *, n_bins: int = 10) -> Statistic:
    """conf-ECE as a statistic of row weights: bins are found once, resamples are one matrix product.

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.
        n_bins: equal-width bins.
    """
    conf64, correct64 = check_conf_correct(conf, correct)
    gaps = spread(correct64 - conf64, bin_index(conf64, n_bins), n_bins)
    return lambda weights: np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1)


def spread(values: NDArray[np.float64], index: NDArray[np.int64], n_bins: int) -> NDArray[np.float64]:
    """(N, M) with values[i] in column index[i] and 0 elsewhere: weights (R, N) times it are per-bin sums (R, M)."""
    matrix = np.zeros((len(values), n_bins))
    matrix[np.arange(len(values)), index] = values
    return matrix


def classwise_ece_statistic(probs: ArrayLike, labels: ArrayLike, *, n_bins: int = 10) -> Statistic:
    """Class-wise ECE as a statistic of row weights; arguments as in `metrics.classwise_ece`."""
    probs64, labels64 = check_probs_labels(probs, labels)
    n_options = probs64.shape[1]
    index = bin_index(probs64, n_bins)
    gaps = np.concatenate(
        [spread((labels64 == k) - probs64[:, k], index[:, k], n_bins) for k in range(n_options)], axis=1
    )
    gaps = gaps[:, gaps.any(axis=0)]  # most options use few bins
    return lambda weights: np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1) / n_options


def debiased_ece_statistic(conf: ArrayLike, correct: ArrayLike, *, n_bins: int = 10) -> Statistic:
    """Debiased conf-ECE, not cut off at 0, as a statistic of row weights; see `metrics.debiased_ece`."""
    conf64, correct64 = check_conf_correct(conf, correct)
    index = bin_index(conf64, n_bins)
    ones, hits, sums = (spread(values, index, n_bins) for values in (np.ones_like(conf64), correct64, conf64))

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = weights @ ones
        divisor = np.maximum(counts, 1)
        accuracy = weights @ hits / divisor
        gap = accuracy - weights @ sums / divisor
        noise = np.sqrt(np.maximum(accuracy * (1 - accuracy), 0) / divisor)
        # Plug-in minus its bias, which is E|gap + noise Z| - |gap|.
        debiased = 2 * np.abs(gap) - folded_normal_mean(gap, noise)
        return (counts * debiased).sum(axis=1) / weights.sum(axis=1)

    return statistic


def conf_ece_interval(
    conf: ArrayLike,
    correct: ArrayLike,
    *,
    n_bins: int = 10,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """conf-ECE with a bootstrap interval; the interval is that of the debiased ECE, widened to hold the value."""
    statistic, n = ece_statistic(conf, correct, n_bins=n_bins), len(np.asarray(conf))
    options = {"n_resamples": n_resamples, "confidence": confidence, "seed": seed}
    inner = debiased_ece_interval(conf, correct, n_bins=n_bins, **options)
    value = on_data(statistic, n)
    return Interval(value, min(inner.low, value), max(inner.high, value))


def debiased_ece_interval(
    conf: ArrayLike,
    correct: ArrayLike,
    *,
    n_bins: int = 10,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Debiased conf-ECE with a bootstrap interval whose upper limit a decision may rest on."""
    n = len(np.asarray(conf))
    value = on_data(debiased_ece_statistic(conf, correct, n_bins=n_bins), n)
    return centred_interval(
        ece_statistic(conf, correct, n_bins=n_bins),
        max(value, 0.0),
        n,
        n_resamples=n_resamples,
        confidence=confidence,
        seed=seed,
    )


def classwise_ece_interval(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    n_bins: int = 10,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Class-wise ECE with a bootstrap interval."""
    statistic, n = classwise_ece_statistic(probs, labels, n_bins=n_bins), len(np.asarray(probs))
    value = on_data(statistic, n)
    inner = centred_interval(statistic, value, n, n_resamples=n_resamples, confidence=confidence, seed=seed)
    return Interval(value, min(inner.low, value), max(inner.high, value))


def centred_interval(
    statistic: Statistic,
    value: float,
    n: int,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a non-negative statistic, its resamples moved so that their mean is `value`."""
    tail = tail_share(confidence)
    values = resample(statistic, n, n_resamples=n_resamples, seed=seed)
    low, high = np.quantile(values, [tail, 1 - tail]) - values.mean() + value
    return Interval(value, max(0.0, float(low)), max(0.0, float(high)))

"""An interval, and how far from a figure its limits lie when questions come in clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from calib_core.errors import ConfigError, DataFormatError

Clusters = NDArray[np.int64]
"""The cluster of each row, (N,), counted from 0. Rows of one cluster may depend on each other."""


class IntervalRecord(TypedDict):
    """An interval as JSON."""

    value: float
    low: Annotated[float | None, "Lower limit; null if the data give none."]
    high: Annotated[float | None, "Upper limit; null if the data give none."]


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: the figure on the data as they are.
        low: lower limit.
        high: upper limit.

    Example:
        >>> print(Interval(0.26, 0.21, 0.31))
        0.260 (0.210 to 0.310)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def to_dict(self) -> IntervalRecord:
        """JSON form, `{"value", "low", "high"}`; null for a limit that the data don't give."""
        return cast(IntervalRecord, asdict(self, dict_factory=json_fields))

    def holding_value(self) -> Interval:
        """The interval, widened where its value lies outside."""
        return Interval(self.value, min(self.low, self.value), max(self.high, self.value))

    def within(self, least: float, most: float) -> Interval:
        """The interval, with limits that lie where the figure can be."""
        return Interval(self.value, max(self.low, least), min(self.high, most))


def json_fields(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Fields of a record as JSON has them, which knows no infinite limits: null stands for these."""
    return {name: None if isinstance(value, float) and math.isinf(value) else value for name, value in pairs}


def tail_share(confidence: float) -> float:
    """Share of the distribution beyond each limit, 0.025 for 0.95.

    Raises:
        ConfigError: `confidence` isn't in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, received {confidence!r}")
    return (1 - confidence) / 2


def check_clusters(clusters: Clusters | None, n: int) -> None:
    """Refuse clusters that are not (N,).

    Raises:
        DataFormatError: they are not.
    """
    if clusters is not None and clusters.shape != (n,):
        raise DataFormatError(f"clusters {clusters.shape} must be ({n},), one per row")


@dataclass(frozen=True)
class Spread:
    """How many independent pieces of evidence N rows are, and what that does to an interval.

    Attributes:
        n_clusters: clusters, N where rows are independent.
        n_effective: clusters of equal size that would say as much, (sum of sizes)^2 / sum of squared sizes
            (Kish 1965).
    """

    n_clusters: int
    n_effective: float

    @classmethod
    def of(cls, n: int, clusters: Clusters | None, *, most: float = math.inf) -> Spread:
        """The spread of `n` rows, of which no more than `most` count as evidence."""
        if clusters is None:
            return cls(n, min(most, n))
        sizes = np.bincount(clusters).astype(np.float64)
        return cls(int((sizes > 0).sum()), min(most, float(sizes.sum() ** 2 / (sizes**2).sum())))

    @property
    def sees_noise(self) -> bool:
        """Whether there are two clusters at least; one alone says nothing about noise."""
        return self.n_clusters > 1

    def quantile(self, tail: float) -> float:
        """Standard errors between a mean and its limit, by Student's t."""
        return float(t.isf(tail, max(self.n_effective - 1, 1.0)))

    def expanded_tail(self, tail: float) -> float:
        """The share of resampled values to cut off, so that few clusters don't make intervals too narrow.

        Source: Hesterberg 2015, *What teachers should know about the bootstrap*, section 4.
        """
        return float(norm.sf(self.quantile(tail)))


def square_of_sums(parts: NDArray[np.float64], clusters: Clusters | None) -> NDArray[np.float64]:
    """Sum of the clusters' squared sums of `parts` (N,) or (N, C): the variance of a mean, times N^2.

    Each sum is taken about the mean of the other clusters (the jackknife), so that few or uneven clusters
    don't show too little variance. `parts` have mean 0; there are two clusters at least.

    Source: MacKinnon, Nielsen & Webb 2023, *Cluster-robust inference*, CV3.
    """
    n = len(parts)
    if clusters is None:
        return np.asarray((parts**2).sum(axis=0) / (1 - 1 / max(n, 2)) ** 2)
    sizes = np.bincount(clusters).astype(np.float64)
    sums = np.zeros((len(sizes), *parts.shape[1:]))
    np.add.at(sums, clusters, parts)
    return np.asarray(((sums.T / (1 - np.minimum(sizes, n - 1) / n)) ** 2).sum(axis=-1))


def rising_root(function: Callable[[float], float], low: float, high: float, *, xtol: float = 1e-9) -> float:
    """Where a rising function is 0 between two bounds; the bound beyond which it would be, where it isn't.

    A search has bounds, so that tables without noise, or with nothing but one confidence, end it too.

    >>> rising_root(lambda x: x - 0.25, 0.0, 1.0), rising_root(lambda x: x + 1, 0.0, 1.0)
    (0.25, 0.0)
    """
    if function(low) >= 0:
        return low
    if not function(high) > 0:
        return high
    return float(brentq(function, low, high, xtol=xtol))

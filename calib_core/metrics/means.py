"""Intervals of figures that are means over rows, of shares, and of the areas that rankings have.

No resampling: to first order each figure is a mean of one part per row (its influence), so that its standard
error is that of a sum over clusters of rows (the jackknife over clusters). Student's t stands for the normal
distribution. Limits are symmetric on the scale on which the figure is least skewed: a score that can't be
below 0 on that of its log, a share of 1 on that of its log odds. Shares that were counted have score
intervals, which hold near 0 and 1 as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from calib_core.errors import DataFormatError, NotEnoughDataError
from calib_core.metrics.interval import (
    Clusters,
    Interval,
    Spread,
    check_clusters,
    rising_root,
    square_of_sums,
    tail_share,
)

Floats = NDArray[np.float64]
Scale = Literal["plain", "log", "logit"]

_SCALES: dict[Scale, tuple[Callable[[float], float], Callable[[float], float], tuple[float, float]]] = {
    "plain": (float, float, (-math.inf, math.inf)),
    "log": (math.log, math.exp, (0.0, math.inf)),
    "logit": (logit, expit, (0.0, 1.0)),
}
"""Scale: there, back, and the values between which it lies."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A figure and what each row adds to it, to first order: figure - truth is about the mean of `parts`.

    Attributes:
        value: the figure.
        parts: float64 (N,), mean 0.
        clusters: cluster of each row, None where rows are independent.
        evidence: rows that the figure hangs on where those are fewer than all of them: the rarer outcome's,
            for an area.
    """

    value: float
    parts: Floats
    clusters: Clusters | None = None
    evidence: float = math.inf

    def __post_init__(self) -> None:
        if not len(self.parts):
            raise NotEnoughDataError("no rows: an interval needs labelled rows")
        check_clusters(self.clusters, len(self.parts))

    @property
    def spread(self) -> Spread:
        """How many independent pieces of evidence the rows are."""
        return Spread.of(len(self.parts), self.clusters, most=self.evidence)

    @property
    def standard_error(self) -> float:
        """Of the figure; infinite where there is one cluster, which says nothing about it."""
        if not self.spread.sees_noise:
            return math.inf
        return math.sqrt(float(square_of_sums(self.parts, self.clusters))) / len(self.parts)

    @property
    def design_effect(self) -> float:
        """By how much clusters raise the variance above that of independent rows, at least 1."""
        if self.clusters is None:
            return 1.0
        independent = float(square_of_sums(self.parts, None))
        if independent <= 0:
            return len(self.parts) / self.spread.n_effective
        return max(1.0, float(square_of_sums(self.parts, self.clusters)) / independent)

    def interval(
        self,
        scale: Scale = "plain",
        *,
        within: tuple[float, float] = (-math.inf, math.inf),
        confidence: float = 0.95,
    ) -> Interval:
        """The figure with limits that are symmetric on a scale; on the plain one where it lies at its end.

        Args:
            scale: on which the limits are symmetric.
            within: what values the figure can have at all; limits beyond are cut.
            confidence: share of such intervals that hold the truth.

        Raises:
            ConfigError: `confidence` isn't in (0, 1).
        """
        found = self._interval(scale, confidence)
        return Interval(found.value, max(found.low, within[0]), min(found.high, within[1])).holding_value()

    def _interval(self, scale: Scale, confidence: float) -> Interval:
        there, back, (least, most) = _SCALES[scale]
        half = self.spread.quantile(tail_share(confidence)) * self.standard_error
        if not math.isfinite(half):
            return Interval(self.value, least, most)
        if not least < self.value < most:
            return Interval(self.value, max(least, self.value - half), min(most, self.value + half))
        if scale != "plain":
            half /= self.value * (1 - self.value) if scale == "logit" else self.value
        middle = there(self.value)
        return Interval(self.value, float(back(middle - half)), float(back(middle + half))).holding_value()


def change(before: Linear, after: Linear) -> Linear:
    """The difference of two figures of the same rows, `after` minus `before`."""
    return Linear(
        after.value - before.value,
        after.parts - before.parts,
        before.clusters,
        evidence=min(before.evidence, after.evidence),
    )


def independent_difference(one: Interval, other: Interval) -> Interval:
    """The difference of two figures of different rows, `one` minus `other`.

    Source: Zou & Donner 2008 (method of variance estimates recovery).
    """
    value = one.value - other.value
    return Interval(
        value,
        value - math.hypot(one.value - one.low, other.high - other.value),
        value + math.hypot(one.high - one.value, other.value - other.low),
    )


def mean_of(values: ArrayLike, clusters: Clusters | None = None) -> Linear:
    """The mean of `values` (N,)."""
    column = np.asarray(values, dtype=np.float64)
    if not column.size:
        raise NotEnoughDataError("no rows: an interval needs labelled rows")
    mean = float(column.mean())
    return Linear(mean, column - mean, clusters)


def share_interval(
    hits: ArrayLike, *, clusters: Clusters | None = None, confidence: float = 0.95
) -> Interval:
    """Score interval of a share: the mean of `hits` (N,), 0 or 1 each (a tie may be 0.5).

    Clusters count as fewer independent rows, by the design effect.

    Raises:
        NotEnoughDataError: no rows.
        ConfigError: `confidence` isn't in (0, 1).

    Source: Wilson 1927; Kish 1965 for clusters.
    """
    mean = mean_of(hits, clusters)
    if not mean.spread.sees_noise:
        return Interval(mean.value, 0.0, 1.0)
    z = mean.spread.quantile(tail_share(confidence))
    limits = score_limits(mean.value, len(mean.parts) / mean.design_effect, z)
    return Interval(mean.value, *limits).holding_value()


def wilson(share: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share that was seen among `n` independent rows.

    Source: Wilson 1927.
    """
    return score_limits(share, n, float(norm.isf(tail_share(confidence))))


def score_limits(share: float, n: float, z: float) -> tuple[float, float]:
    """Limits of a share seen among `n` independent rows, `z` standard errors of the true one away from it."""
    share = float(share)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_change(
    before: ArrayLike, after: ArrayLike, *, clusters: Clusters | None = None, confidence: float = 0.95
) -> Interval:
    """Score interval of the change of a share on the same rows, `after` minus `before`, each (N,) in [0, 1].

    A limit is the change under which a difference as large as the one seen would be as rare as `confidence`
    says, the share of rows that change being what it would most probably be under it. So a table in which no
    row changed has limits apart from 0 all the same.

    Raises:
        DataFormatError: the numbers of rows differ.
        NotEnoughDataError: no rows.
        ConfigError: `confidence` isn't in (0, 1).

    Source: Tango 1998, *Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design*; the design effect for clusters.
    """
    before64, after64 = (np.asarray(side, dtype=np.float64) for side in (before, after))
    if before64.shape != after64.shape:
        raise DataFormatError(
            f"{before64.shape} rows before and {after64.shape} after; a paired change needs the same rows"
        )
    mean = mean_of(after64 - before64, clusters)
    tail = tail_share(confidence)
    if not mean.spread.sees_noise:
        return Interval(mean.value, -1.0, 1.0)
    z, effect = mean.spread.quantile(tail), mean.design_effect
    n = len(before64) / effect
    gained, lost = (float(np.maximum(way * (after64 - before64), 0).sum()) / effect for way in (1, -1))

    def errors_above(change: float) -> float:
        """Standard errors, as they would be under `change`, by which it exceeds the change seen."""
        linear = -gained - lost + (2 * n - gained + lost) * change
        constant = -lost * change * (1 - change)
        losing = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        variance = max(n * (2 * losing + change * (1 - change)), 1e-12)
        return (n * change - gained + lost) / math.sqrt(variance)

    low = rising_root(lambda change: errors_above(change) + z, -1.0, mean.value)
    high = rising_root(lambda change: errors_above(change) - z, mean.value, 1.0)
    return Interval(mean.value, low, high).holding_value()


def auroc_linear(conf: Floats, correct: Floats, clusters: Clusters | None = None) -> Linear:
    """AUROC of confidence for correctness, with ties counted half.

    Args:
        conf: (N,), checked.
        correct: (N,), 0 or 1, with both among them.
        clusters: cluster of each row.

    Source: DeLong et al. 1988 (a right row's part is the share of wrong rows below it, and conversely).
    """
    right = correct == 1
    share = float(right.mean())
    own = np.empty_like(conf)
    own[right] = _share_below(conf[right], conf[~right])
    own[~right] = 1 - _share_below(conf[~right], conf[right])
    area = float(own[right].mean())
    parts = np.where(right, (own - area) / share, (own - area) / (1 - share))
    return Linear(area, parts, clusters, evidence=_rarer(correct, clusters))


def _rarer(correct: Floats, clusters: Clusters | None) -> float:
    """How many clusters have a row of the rarer outcome."""
    rows = [np.flatnonzero(correct == outcome) for outcome in (0, 1)]
    return float(min(len(found if clusters is None else np.unique(clusters[found])) for found in rows))


def _share_below(values: Floats, others: Floats) -> Floats:
    """Share of `others` below each of `values`, equal ones counted half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(below / (2 * len(others)), dtype=np.float64)


def auroc_interval(
    conf: Floats, correct: Floats, *, clusters: Clusters | None = None, confidence: float = 0.95
) -> Interval:
    """AUROC with limits that are symmetric on the scale of log odds.

    Where right and wrong rows don't overlap, nothing is seen of the noise; the limit is then that of a share
    of 0 or 1 among as many rows as the rarer kind has.
    """
    area = auroc_linear(conf, correct, clusters)
    if 0 < area.value < 1 and area.standard_error > 0:
        return area.interval("logit", confidence=confidence)
    z = area.spread.quantile(tail_share(confidence))
    limits = score_limits(area.value, area.evidence, z)
    return Interval(area.value, *limits).holding_value()


def aurc_linear(conf: Floats, correct: Floats, clusters: Clusters | None = None) -> Linear:
    """Area under the risk-coverage curve, the mean risk over the N coverages; ties share their risk evenly.

    A row adds the risk at its own level of confidence, and at every level below it how its outcome differs
    from the risk there, over the coverage.

    Args:
        conf: (N,), checked.
        correct: (N,), 0 or 1.
        clusters: cluster of each row.
    """
    n = len(conf)
    levels, level = np.unique(-conf, return_inverse=True)
    counts, wrong = np.bincount(level), np.bincount(level, 1 - correct)
    rank = np.arange(1, n + 1)
    risk = np.repeat(wrong / counts, counts).cumsum() / rank
    area = float(risk.mean())
    # Sums over the ranks at or below each level, from the bottom; a level's own ranks count half.
    of_level = np.repeat(np.arange(len(levels)), counts)
    share = np.bincount(of_level, 1 / rank)
    weighted = np.bincount(of_level, risk / rank)
    own = np.bincount(of_level, risk) / counts
    below, below_weighted = (
        np.append(values[::-1].cumsum()[::-1][1:], 0.0) + values / 2 for values in (share, weighted)
    )
    parts = own[level] - area + (1 - correct) * below[level] - below_weighted[level]
    return Linear(area, parts - parts.mean(), clusters, evidence=_rarer(correct, clusters))

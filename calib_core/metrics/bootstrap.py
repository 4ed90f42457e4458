"""The noise of a calibration error, learnt from resamples: what a true error of another size would show.

An error is a sum of absolute gaps over cells, which noise biases upwards; a plain bootstrap interval of it
lies too high. Resampled gaps are products of row weights. Where rows come in clusters, clusters are
resampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from calib_core.errors import ConfigError, NotEnoughDataError
from calib_core.metrics.interval import Clusters, Spread, check_clusters, rising_root, square_of_sums

ROUNDING = 1e-12  # a spread below it comes from sums, not from rows that differ
LUCK = 0.16  # one standard deviation below the mean of a normal distribution
CHUNK_ELEMENTS = 2**21  # 16 MB of float64 weights at a time
FEWEST_BEYOND = 10  # resamples beyond a limit; with fewer it is scaled from one that has them
FARTHEST = 2.0**60  # standard errors; a search ends there


def resample_weights(
    n: int, *, clusters: Clusters | None = None, n_resamples: int = 1000, seed: int = 0
) -> Iterator[NDArray[np.float64]]:
    """Yield the row weights of `n_resamples` resamples in chunks (R, N): how often each holds each row.

    Without clusters each resample's weights sum to N. With them as many clusters are drawn as there are, each
    with all of its rows.

    Raises:
        NotEnoughDataError: `n` is 0.
        ConfigError: `n_resamples` is below 1.
        DataFormatError: `clusters` isn't (N,).
    """
    if n < 1:
        raise NotEnoughDataError("no rows to resample: an interval needs labelled rows")
    if n_resamples < 1:
        raise ConfigError(f"n_resamples must be at least 1, received {n_resamples!r}")
    check_clusters(clusters, n)
    units = n if clusters is None else int(clusters.max()) + 1
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_ELEMENTS // n)
    for start in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - start)
        drawn = generator.integers(0, units, size=(size, units)) + np.arange(size)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
        yield counts if clusters is None else counts[:, clusters]


@dataclass(frozen=True, eq=False)
class GapModel:
    """What ECE would be observed if the true gaps were larger or smaller than those seen.

    Both kinds of ECE are a sum of absolute gaps over cells (bins; or classes and bins), and each gap is a
    mean over rows. Noise in a gap adds to its absolute value, and a resample carries the noise of the data
    and its own, so that plain bootstrap intervals lie too high. Here the resamples serve only to learn the
    noise; candidates for the true gaps are those seen, moved towards or away from 0 by a common number of
    their standard errors.

    Attributes:
        cells: float64 (C,), the gaps seen, as shares of the ECE.
        noise: float64 (R, C), resampled gaps minus `cells`.
        sd: float64 (C,), the gaps' standard errors.
        spread: how many independent pieces of evidence the rows are.
    """

    cells: NDArray[np.float64]
    noise: NDArray[np.float64]
    sd: NDArray[np.float64]
    spread: Spread

    @classmethod
    def of(
        cls, gaps: NDArray[np.float64], *, clusters: Clusters | None = None, n_resamples: int, seed: int
    ) -> GapModel:
        """The model of `gaps` (N, C), each row's share in the cells' gaps."""
        n = len(gaps)
        chunks = resample_weights(n, clusters=clusters, n_resamples=n_resamples, seed=seed)
        cells = gaps.mean(axis=0)
        noise = np.concatenate(
            [weights @ gaps / weights.sum(axis=1, keepdims=True) - cells for weights in chunks]
        )
        sd = np.sqrt(square_of_sums(gaps - cells, clusters)) / n
        moving = (sd > ROUNDING) & (noise.std(axis=0) > ROUNDING)
        # Resampling few clusters shows too little noise; the jackknife over clusters says how much there is.
        scale = np.divide(sd, noise.std(axis=0), out=np.zeros_like(sd), where=moving)
        return cls(cells, noise * scale, np.where(moving, sd, 0.0), Spread.of(n, clusters))

    @property
    def seen(self) -> float:
        """The ECE seen on the data."""
        return float(np.abs(self.cells).sum())

    def truth(self, shift: float) -> NDArray[np.float64]:
        """Candidate true gaps (C,): those seen, `shift` standard errors further from 0, but not across it."""
        away = np.where(self.cells < 0, -1.0, 1.0)  # a gap of 0 can move too
        return np.asarray(away * np.maximum(np.abs(self.cells) + shift * self.sd, 0))

    def observed(self, shift: float) -> NDArray[np.float64]:
        """The ECE that R noisy data sets would show if `truth(shift)` were true, float64 (R,)."""
        return np.asarray(np.abs(self.truth(shift) + self.noise).sum(axis=1))

    @property
    def least_believed(self) -> float:
        """The ECE below which a share `LUCK` of noisy data sets of a perfectly calibrated model would lie."""
        return float(np.quantile(np.abs(self.noise).sum(axis=1), LUCK))

    def shift_where_seen_is_quantile(self, level: float, *, seen: float | None = None) -> float:
        """The shift at which a share `level` of `observed` lies below the ECE seen, or the lowest of all."""
        moving = self.sd > 0
        if not moving.any():
            return 0.0
        seen = self.seen if seen is None else seen

        def excess(shift: float) -> float:
            return float(np.quantile(self.observed(shift), level)) - seen

        # A little beyond the largest gap, so that rounding leaves no gap at the bottom.
        bottom, top = -1.001 * float((np.abs(self.cells[moving]) / self.sd[moving]).max()), 1.0
        while excess(top) < 0 and top < FARTHEST:
            top *= 2
        return rising_root(excess, min(bottom, top), top, xtol=1e-6)

    def truth_where_seen_is_quantile(self, level: float, *, seen: float | None = None) -> float:
        """The true ECE under which a share `level` of data sets would show less than was seen."""
        shift = self.shift_where_seen_is_quantile(level, seen=seen)
        return min(1.0, float(np.abs(self.truth(shift)).sum()))

    @property
    def middle(self) -> float:
        """The median-unbiased estimate: the true ECE under which the ECE seen would be the median."""
        return self.truth_where_seen_is_quantile(0.5)

    def limits(self, tail: float) -> tuple[float, float]:
        """Lower and upper limit of the true ECE, a share `tail` beyond each.

        An ECE smaller than nearly all perfectly calibrated models would show is luck; taken at its word, it
        would leave no room for any miscalibration. The upper limit is that of `least_believed` then.

        Where clusters are few, or a tail holds too few resamples, the limits are further out: as a normal
        distribution's of the same spread.
        """
        if not self.spread.sees_noise:
            return 0.0, 1.0
        wanted = self.spread.expanded_tail(tail)
        level = max(wanted, min(FEWEST_BEYOND / len(self.noise), 0.25))
        low = self.truth_where_seen_is_quantile(1 - level)
        high = self.truth_where_seen_is_quantile(level, seen=max(self.seen, self.least_believed))
        if wanted < level:
            further, middle = float(norm.isf(wanted) / norm.isf(level)), self.middle
            low = max(0.0, min(low, middle - further * (middle - low)))
            high = min(1.0, max(high, middle + further * (high - middle)))
        return low, high

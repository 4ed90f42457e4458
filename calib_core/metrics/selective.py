"""Confidence as a reason to answer or abstain: AUROC, risk-coverage curve, threshold for a target risk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from calib_core.errors import ConfigError, NotEnoughDataError
from calib_core.metrics.binning import check_conf_correct
from calib_core.metrics.means import wilson


def auroc(conf: ArrayLike, correct: ArrayLike) -> float:
    """Chance that a right row is more confident than a wrong one (ties count half), in [0, 1].

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.

    Raises:
        DataFormatError: wrong shapes, NaN, or values outside their range.
        NotEnoughDataError: all rows are right, or all are wrong, or there are none.

    Source: Mann & Whitney 1947, with mid-ranks.

    Example:
        >>> auroc([0.9, 0.8, 0.6, 0.5], [1, 0, 1, 0])  # three of the four pairs are in order
        0.75
    """
    conf64, correct64 = check_conf_correct(conf, correct)
    n_right = int(correct64.sum())
    n_wrong = len(correct64) - n_right
    if not n_right or not n_wrong:
        raise NotEnoughDataError(
            f"AUROC needs a right and a wrong row, found {n_right} right and {n_wrong} wrong; take more rows"
        )
    ranks = rankdata(conf64)[correct64 == 1].sum()
    return float((ranks - n_right * (n_right + 1) / 2) / (n_right * n_wrong))


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What answering only above a confidence costs and saves: a point per distinct confidence, from the top.

    Attributes:
        threshold: float64 (T,), rows with conf >= threshold are answered.
        coverage: float64 (T,), share of rows answered, in (0, 1].
        risk: float64 (T,), share of wrong rows among the answered.
        aurc: area under the curve, the mean risk over the N coverages i/N (rows of equal confidence in random
            order).
    """

    threshold: NDArray[np.float64]
    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    aurc: float


def risk_coverage(conf: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """The risk-coverage curve and the area under it.

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.

    Raises:
        DataFormatError: wrong shapes, NaN, or values outside their range.
        NotEnoughDataError: no rows.

    Source: Geifman & El-Yaniv 2017; Geifman et al. 2019 for the area.

    Example:
        >>> curve = risk_coverage([0.9, 0.8, 0.8, 0.6], [1, 1, 0, 0])
        >>> curve.threshold.tolist(), curve.coverage.tolist(), round(curve.aurc, 6)
        ([0.9, 0.8, 0.6], [0.25, 0.75, 1.0], 0.270833)
    """
    conf64, correct64 = check_conf_correct(conf, correct)
    levels, level = np.unique(-conf64, return_inverse=True)
    counts = np.bincount(level)
    wrong = np.bincount(level, 1 - correct64)
    answered = counts.cumsum()
    errors_by_rank = np.repeat(wrong / counts, counts).cumsum()
    aurc = float((errors_by_rank / np.arange(1, len(conf64) + 1)).mean())
    return RiskCoverage(-levels, answered / len(conf64), wrong.cumsum() / answered, aurc)


@dataclass(frozen=True)
class OperatingPoint:
    """A confidence threshold and what came of it on the rows that it was chosen on.

    Attributes:
        threshold: rows with conf >= threshold are answered.
        coverage: share of rows answered.
        risk: share of wrong rows among the answered.
        risk_high: upper limit of the 95 % Wilson interval of the risk.
    """

    threshold: float
    coverage: float
    risk: float
    risk_high: float


def threshold_at_risk(conf: ArrayLike, correct: ArrayLike, *, target_risk: float) -> OperatingPoint | None:
    """The threshold that answers the most rows with a risk of at most `target_risk`; None where none does.

    Chosen and measured on the same rows, so the risk is somewhat flattering: check it on fresh rows.

    Args:
        conf: (N,) in [0, 1].
        correct: (N,) 0 or 1.
        target_risk: share of wrong answers that is accepted, in [0, 1].

    Raises:
        ConfigError: `target_risk` isn't in [0, 1].
        DataFormatError: wrong shapes, NaN, or values outside their range.
        NotEnoughDataError: no rows.
    """
    if not 0 <= target_risk <= 1:
        raise ConfigError(f"target_risk must lie in [0, 1], received {target_risk!r}")
    curve = risk_coverage(conf, correct)
    fitting = np.flatnonzero(curve.risk <= target_risk)
    if not fitting.size:
        return None
    at = fitting[-1]
    coverage, risk = float(curve.coverage[at]), float(curve.risk[at])
    answered = round(coverage * len(np.asarray(conf)))
    return OperatingPoint(float(curve.threshold[at]), coverage, risk, wilson(risk, answered)[1])

"""The gate: a recalibrated model replaces the input model only where the test questions say so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from calib_core.errors import ConfigError, DataFormatError
from calib_core.metrics.binning import check_n_bins
from calib_core.metrics.bootstrap import (
    Interval,
    bin_gaps,
    bootstrap_interval,
    gap_sum_change,
    mean_statistic,
)
from calib_core.predictions.table import Predictions, check_same_protocol


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What the gate decided, and why.

    Attributes:
        promoted: whether the model after takes the place of the model before.
        ece_change: change of conf-ECE, after minus before, with its paired interval.
        accuracy_change: change of accuracy, after minus before, with its paired interval.
        reasons: plain sentences with the figures in them.
    """

    promoted: bool
    ece_change: Interval
    accuracy_change: Interval
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the attributes by name."""
        return {
            "promoted": self.promoted,
            "ece_change": self.ece_change.to_dict(),
            "accuracy_change": self.accuracy_change.to_dict(),
            "reasons": list(self.reasons),
        }


def decide(
    before: Predictions,
    after: Predictions,
    *,
    accuracy_margin: float = 0.01,
    n_bins: int = 10,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> GateResult:
    """Compare two models on the same test questions.

    Promoted where the paired interval of the conf-ECE change lies below zero and accuracy, as measured, falls
    by no more than the margin.

    Args:
        before: the input model's predictions.
        after: the recalibrated model's, the same ids in the same order with the same labels.
        accuracy_margin: the fall in accuracy that is accepted, in [0, 1].
        n_bins: equal-width bins of the ECE.
        n_resamples: bootstrap resamples.
        confidence: of the intervals.
        seed: of the resamples.

    Raises:
        DataFormatError: the questions, their order or their labels differ, a label is missing, or the tables
            were made in different ways (all but the adapter).
        NotEnoughDataError: no rows.
        ConfigError: a parameter is out of range.

    Example:
        >>> labels = [0, 1, 0, 0] * 50
        >>> sure = Predictions.from_probs([[0.99, 0.01]] * 200, labels)
        >>> mended = Predictions.from_probs([[0.74, 0.26]] * 200, labels)
        >>> decide(sure, mended).promoted, decide(mended, sure).promoted
        (True, False)
    """
    if not (math.isfinite(accuracy_margin) and 0 <= accuracy_margin <= 1):
        raise ConfigError(f"accuracy_margin must lie in [0, 1], received {accuracy_margin!r}")
    check_n_bins(n_bins)
    check_same_questions(before, after)
    check_same_protocol(before, after)
    hits_before, hits_after = before.correct(), after.correct()
    ece_change = gap_sum_change(
        bin_gaps(before.confidence(), hits_before, n_bins=n_bins),
        bin_gaps(after.confidence(), hits_after, n_bins=n_bins),
        n_resamples=n_resamples,
        confidence=confidence,
        seed=seed,
    )
    accuracy_change = bootstrap_interval(
        mean_statistic(hits_after - hits_before),
        len(before),
        n_resamples=n_resamples,
        confidence=confidence,
        seed=seed,
    )
    # Accuracies are counts over N: the margin is compared in whole questions, free of rounding.
    fall = int(hits_before.sum() - hits_after.sum())
    ece_fell, accuracy_held = ece_change.high < 0, fall <= accuracy_margin * len(before) + 1e-9
    reasons = (
        _ece_reason(ece_change, len(before), confidence),
        _accuracy_reason(accuracy_change, accuracy_margin, accuracy_held, confidence),
    )
    promoted = ece_fell and accuracy_held
    verdict = (
        "The recalibrated model is promoted."
        if promoted
        else "The recalibrated model isn't promoted; the input model is kept."
    )
    return GateResult(
        promoted=promoted, ece_change=ece_change, accuracy_change=accuracy_change, reasons=(*reasons, verdict)
    )


def _ece_reason(change: Interval, n: int, confidence: float) -> str:
    figures = f"{_signed(change.value)} on {n:,} test questions ({_limits(change, confidence)})"
    if change.high < 0:
        return f"The conf-ECE changed by {figures}: the whole interval lies below zero, it fell."
    if change.low > 0:
        return f"The conf-ECE changed by {figures}: the whole interval lies above zero, it rose."
    return f"The conf-ECE changed by {figures}: the interval reaches zero, a fall isn't shown."


def _accuracy_reason(change: Interval, margin: float, held: bool, confidence: float) -> str:
    figures = f"Accuracy changed by {_signed(change.value)} ({_limits(change, confidence)})"
    if held:
        return f"{figures}: it didn't fall by more than the accepted {margin:.4g}."
    return f"{figures}: it fell by more than the accepted {margin:.4g}."


def _signed(value: float) -> str:
    return f"{value + 0.0:+.4f}"


def _limits(interval: Interval, confidence: float) -> str:
    return f"{100 * confidence:.4g} % interval {_signed(interval.low)} to {_signed(interval.high)}"


def check_same_questions(before: Predictions, after: Predictions) -> None:
    """Refuse two tables that are not of the same questions, in the same order, with the same labels.

    Raises:
        DataFormatError: they are not; the difference is named.
    """
    if before.ids != after.ids:
        if sorted(before.ids) == sorted(after.ids):
            raise DataFormatError(
                "the two predictions tables hold the same questions in different orders (field 'id'); "
                "sort both the same way"
            )
        missing, extra = set(before.ids) - set(after.ids), set(after.ids) - set(before.ids)
        example = min(missing or extra)
        raise DataFormatError(
            f"the two predictions tables hold different questions: {len(missing)} only before, "
            f"{len(extra)} only after (for instance id {example!r}); score both models on the same questions"
        )
    different = np.flatnonzero((before.labels != after.labels) | (before.n_options != after.n_options))
    if different.size:
        row = int(different[0])
        raise DataFormatError(
            f"the two predictions tables differ in label or number of options of {different.size} questions "
            f"(first: row {row + 1}, id {before.ids[row]!r}, field 'label'); score both on the same questions"
        )

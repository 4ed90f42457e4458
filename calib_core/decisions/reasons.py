"""The regime test's decision in sentences, for the person who owns the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from calib_core.metrics.interval import Interval

if TYPE_CHECKING:
    from calib_core.decisions.bounds import RegimeResult

_NEXT = {
    "calibrated": "Nothing needs doing.",
    "calibratable": "Fine-tuning on answers (CFT) can restore calibration without losing accuracy.",
    "non_calibratable": (
        "Fine-tuning needs the calibration term (RCFT), which holds confidence at the held-out accuracy."
    ),
}


def regime_reasons(result: RegimeResult, *, given: bool) -> tuple[str, ...]:
    """What was measured, what that means for the target and for memorising, and what follows.

    Args:
        result: the test's findings.
        given: whether the critical accuracy was given, not estimated.
    """
    source = "as given" if given else "estimated on held-out questions"
    return (
        f"On {result.n_heldout} held-out questions the model is right {_percent(result.accuracy_heldout)} of "
        f"the time and on average {_percent(result.mean_confidence_heldout)} sure; its calibration error, "
        f"without what chance adds, is {_range(result.debiased_ece)}.",
        _against_target(result),
        f"On the {result.n_fit} questions for fine-tuning it is right {_percent(result.accuracy_fit)} of the "
        f"time; without memorising, {_percent(result.critical_accuracy)} could be expected (critical "
        f"accuracy, {source}).",
        _about_memorising(result),
        _NEXT[result.regime],
    )


def undecided_message(ece: Interval, target_ece: float, n: int) -> str:
    """The error's text where the interval of the held-out ECE holds the target and that is to stop."""
    # Half widths fall as 1 / sqrt(n): from which n on does the half towards the target no longer reach it?
    half = ece.high - ece.value if ece.value <= target_ece else ece.value - ece.low
    distance = abs(target_ece - ece.value)
    wanted = n * (half / distance) ** 2 if distance > 0 else math.inf
    more = (
        f"about {math.ceil(wanted)} would decide if the error is what it seems"
        if wanted < 100 * n
        else "it lies on the target, so that more questions are unlikely to decide"
    )
    return (
        f"heldout: {n} questions leave open whether the calibration error, {_range(ece)}, is above "
        f"target_ece {target_ece:g}; {more}: bring more questions, choose another target_ece, or go on with "
        "on_undecided 'branch'"
    )


def _against_target(result: RegimeResult) -> str:
    target = f"the target of {result.target_ece:g}"
    if result.regime == "calibrated":
        return f"Even the upper limit is within {target}: the model is calibrated."
    if result.undecided:
        return f"The interval reaches to both sides of {target}: the model is not shown to be calibrated."
    return f"Even the lower limit is above {target}: the model is not calibrated."


def _about_memorising(result: RegimeResult) -> str:
    lower, tolerance = result.lower_bound, f"the tolerance of {result.tolerance:g}"
    if lower.low > result.tolerance:
        return (
            f"The difference, {_range(lower)}, is above {tolerance}: the model has memorised answers, and as "
            "it is it can't be calibrated on those questions and on new ones at once."
        )
    if lower.high > result.tolerance:
        return f"The difference, {_range(lower)}, may be above {tolerance}, but memorising is not shown."
    return f"The difference, {_range(lower)}, is within {tolerance}: memorising does not stand in the way."


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} %"


def _range(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"

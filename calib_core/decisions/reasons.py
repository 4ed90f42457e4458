"""The regime test's decision in sentences, for the person who owns the model."""

from __future__ import annotations

import math

from calib_core.decisions.result import RegimeResult
from calib_core.metrics.interval import Interval
from calib_core.metrics.means import independent_difference


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
        f"without what chance adds, is {result.debiased_ece}.",
        _against_target(result),
        f"On the {result.n_fit} questions for fine-tuning it is right {_percent(result.accuracy_fit)} of the "
        f"time; without memorising, {_percent(result.critical_accuracy)} could be expected (critical "
        f"accuracy, {source}).",
        _about_memorising(result),
        *_about_resolution(result),
        _what_follows(result),
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
        f"heldout: {n} questions leave open whether the calibration error, {ece}, is above "
        f"target_ece {target_ece:g}; {more}: provide more questions, choose another target_ece, or continue "
        "with on_undecided 'branch'"
    )


def _against_target(result: RegimeResult) -> str:
    target = f"the target of {result.target_ece:g}"
    if result.regime == "calibrated":
        return f"Even the upper limit is within {target}: the model is calibrated."
    if result.debiased_ece.high <= result.target_ece:
        return (
            f"Its upper limit is within {target}, but over narrow bins the error is {result.fine_ece}: "
            "errors cancel within wide bins, and the model is not shown to be calibrated."
        )
    if result.undecided:
        return f"The interval reaches to both sides of {target}: the model is not shown to be calibrated."
    return f"Even the lower limit is above {target}: the model is not calibrated."


def _about_memorising(result: RegimeResult) -> str:
    lower, tolerance = result.lower_bound, f"the tolerance of {result.tolerance:g}"
    difference = independent_difference(result.accuracy_fit, result.critical_accuracy)
    if lower.high <= result.tolerance:
        return f"The difference, {difference}, is within {tolerance}: memorising does not stand in the way."
    if lower.low <= result.tolerance:
        return f"The difference, {difference}, may be above {tolerance}, but memorising is not shown."
    if not result.has_memorised:
        return (
            f"The difference, {difference}, is above {tolerance}, but held-out questions of the same "
            f"confidence are answered about as well (difference {result.unexplained}): the model has "
            "memorised answers, or the questions for fine-tuning are easier, so that memorising is not shown."
        )
    return (
        f"The difference, {difference}, is above {tolerance}, and held-out questions of the same confidence "
        "don't explain it: the model has memorised answers. On those questions its calibration error and its "
        "distance from what can be known add up to this difference at least."
    )


def _about_resolution(result: RegimeResult) -> tuple[str, ...]:
    """A model whose confidence tells nothing, also where its calibration error is small."""
    scaled = result.temperature
    if scaled.has_resolution:
        return ()
    auroc = "" if scaled.auroc is None else f" (AUROC {scaled.auroc}, where 0.5 is chance)"
    return (
        f"Its confidence is not shown to tell right answers from wrong ones{auroc}; the best temperature, "
        f"{scaled.value:.3g}, {_what_it_does(scaled.value)}.",
    )


def _what_it_does(temperature: float) -> str:
    return "makes all options about equally likely" if temperature >= 10 else "cannot add what is missing"


def _what_follows(result: RegimeResult) -> str:
    scaled = result.temperature
    if result.branch == "cft":
        return "Fine-tuning on answers (CFT) can restore calibration without losing accuracy."
    if result.branch == "rcft":
        return (
            "Fine-tuning needs the calibration term (RCFT), which holds confidence at the held-out accuracy."
        )
    if result.branch == "temperature":
        start = f"One temperature, {scaled.value:.3g}, changes no answer and "
        if scaled.ece.high <= result.target_ece:
            return f"{start}brings the calibration error on held-out questions to {scaled.ece}: it is enough."
        return (
            f"{start}is the only repair that is allowed here; the calibration error after it, {scaled.ece}, "
            "is not shown to be within the target."
        )
    if result.regime == "calibrated":
        return "Nothing needs doing."
    return (
        f"None of the repairs that are allowed ({', '.join(result.repairs)}) can help: there is no ranking "
        "that a temperature could keep. Fine-tuning would have to teach the model first."
    )


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} %"

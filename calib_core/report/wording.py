"""The report's words: names of figures, the verdict in plain sentences, values as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FIGURES: Mapping[str, str] = {
    "accuracy": "Accuracy",
    "mean_confidence": "Mean confidence",
    "conf_ece": "conf-ECE",
    "cw_ece": "cw-ECE",
    "debiased_ece": "Debiased ECE",
    "adaptive_ece": "Equal-mass ECE",
    "smooth_ece": "Smooth ECE",
    "mce": "Largest bin error (MCE)",
    "brier": "Brier score",
    "nll_nats": "Negative log-likelihood (nats)",
    "auroc": "AUROC of confidence",
    "aurc": "Area under risk-coverage",
    "letter_mass": "Letter mass",
    "n": "Questions",
    "n_bins": "Confidence bins",
}
FIGURE_NOTES: Mapping[str, str] = {
    "accuracy": "share of questions answered right",
    "mean_confidence": "of the chosen option; should equal accuracy",
    "conf_ece": "calibration error of the chosen option; 0 is best",
    "cw_ece": "calibration error over all options; 0 is best",
}
REGIMES: Mapping[str, str] = {
    "calibrated": "calibrated",
    "calibratable": "calibratable",
    "non_calibratable": "non-calibratable",
}
NOT_DECIDABLE = "not_decidable"
"""In place of a regime where the folds are too small to name one."""

BOUNDS: Mapping[str, str] = {
    "accuracy_fit": "Accuracy on the fine-tuning questions",
    "critical_accuracy": "Critical accuracy",
    "accuracy_heldout": "Accuracy on held-out questions",
    "upper_bound": "Upper bound: held-out ECE as measured",
    "fine_ece": "Held-out ECE over narrow bins",
    "unexplained": "Accuracy on fine-tuning questions above that of held-out ones of the same confidence",
}
WIN_RATE: Mapping[str, str] = {**FIGURES, "n": "Pairs"}
HISTORY: Mapping[str, str] = {"accuracy": "Accuracy", "mean_confidence": "Confidence", "conf_ece": "ECE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the report says first.

    Attributes:
        status: one word: Promoted, Kept, Compared or Measured.
        headline: the outcome in a sentence.
        sentences: which branch was taken, why, and what changed.
        reasons: the gate's own reasons.
    """

    status: str
    headline: str
    sentences: list[str]
    reasons: list[str]


def percent(value: float) -> str:
    """A share as a whole percentage: 27 %. The space doesn't break."""
    return f"{100 * value:.0f}\u00a0%"


def verdict(summary: Mapping[str, Any], regime: Mapping[str, Any]) -> Verdict:
    """Say what was decided and why, in plain words."""
    before, after = summary["before"], summary.get("after")
    right, sure = before["accuracy"]["value"], before["mean_confidence"]["value"]
    known = set(regime.get("reasons", ()))
    reasons = [reason for reason in summary.get("reasons", ()) if reason not in known]
    sentences = list(summary.get("cautions", ()))
    if why := branch_reason(summary.get("branch"), regime):
        sentences.append(why)
    is_run = "branch" in summary
    first, second = ("input model", "new one") if is_run else ("first model", "second one")
    if after:
        sentences.append(
            f"The {first} is right on {percent(right)} of the questions and {percent(sure)} sure on "
            f"average; the {second} is right on {percent(after['accuracy']['value'])} and "
            f"{percent(after['mean_confidence']['value'])} sure."
        )
    if after and not is_run:
        status, headline = "Compared", gate_text(passes=summary["promoted"])
    elif after and summary["promoted"]:
        status, headline = (
            "Promoted",
            (
                "The new model replaces the input model: its calibration error fell from "
                f"{before['conf_ece']['value']:.3f} to {after['conf_ece']['value']:.3f}."
            ),
        )
    elif after:
        status, headline = "Kept", "The input model is kept: the new one did not pass the gate."
    elif summary.get("branch") == "none":
        calibrated = regime.get("regime", "calibrated") == "calibrated"
        status, headline = (
            "Kept",
            "The input model is kept as it is: on questions it never saw, it is calibrated."
            if calibrated
            else "The input model is kept as it is: no repair that is allowed can help.",
        )
        sentences.append(_plain_state(right, sure))
    else:
        status, headline = "Measured", _plain_state(right, sure)
    return Verdict(status=status, headline=headline, sentences=sentences, reasons=reasons)


def gate_text(*, passes: bool) -> str:
    """What the gate says of two tables, neither of which a run is about to use or to replace."""
    return f"The second model {'passes' if passes else 'does not pass'} the gate against the first one."


def _plain_state(right: float, sure: float) -> str:
    return f"The model is right on {percent(right)} of the questions and {percent(sure)} sure on average."


_NOT_SHOWN = (
    "the calibration error on held-out questions is not shown to be at or below the target of {target:g}"
)
_BRANCH_REASONS: Mapping[tuple[str, str], str] = {
    ("none", "calibrated"): (
        "No branch was taken: the calibration error on held-out questions is at or below the target "
        "of {target:g}, so nothing needs repair."
    ),
    ("none", ""): f"No branch was taken: {_NOT_SHOWN}, but no repair that is allowed can help.",
    ("temperature", ""): (
        f"A temperature of {{temperature:.3g}} was chosen: {_NOT_SHOWN}, and dividing the option logits by "
        "one number, which changes no answer, is enough."
    ),
    ("cft", ""): (
        f"CFT (fine-tuning on the answers) was chosen: {_NOT_SHOWN}, and accuracy on the fine-tuning "
        "questions is not shown to exceed what a calibrated model could reach, so calibration can be "
        "restored without giving up accuracy."
    ),
    ("rcft", "non_calibratable"): (
        f"RCFT (fine-tuning towards estimated confidences) was chosen: {_NOT_SHOWN}, and accuracy on the "
        "fine-tuning questions exceeds what a calibrated model could reach: it has memorised answers."
    ),
    ("rcft", ""): (
        f"RCFT (fine-tuning towards estimated confidences) was the last branch: {_NOT_SHOWN}, and "
        "fine-tuning on the answers took the model out of the regime in which that alone restores "
        "calibration."
    ),
}
"""By branch and regime; a branch in any other regime has the reason that names none."""


def branch_reason(branch: str | None, regime: Mapping[str, Any]) -> str:
    """Why the branch was taken, from the regime; empty where nothing was decided."""
    if not regime or branch is None:
        return ""
    reason = _BRANCH_REASONS.get((branch, regime["regime"])) or _BRANCH_REASONS.get((branch, ""), "")
    temperature = (regime.get("temperature") or {}).get("value", float("nan"))
    return reason.format(target=regime["target_ece"], temperature=temperature)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of dotted names and texts."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows.extend(flat(value, f"{prefix}{key}."))
        else:
            rows.append((f"{prefix}{key}", _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "–"
    return str(value)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(7.25), duration(254.0)
        ('7.2 s', '4 min 14 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"

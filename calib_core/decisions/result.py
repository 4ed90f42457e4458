"""What the regime test found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, NotRequired, TypedDict, cast

from calib_core.metrics.interval import Interval, IntervalRecord, json_fields

Regime = Literal["calibrated", "calibratable", "non_calibratable"]
Branch = Literal["none", "temperature", "cft", "rcft"]

EXPLAINED = 0.025
"""How far accuracy on `fit` may lie above that of held-out questions of the same confidence where its
questions are just easier: a model that is too sure can't show how easy they are."""


class TemperatureRecord(TypedDict):
    """`TemperatureFindings` as JSON."""

    value: float
    ece: IntervalRecord
    fine_ece: IntervalRecord
    auroc: IntervalRecord | None
    brier_skill: IntervalRecord


class RegimeRecord(TypedDict):
    """`RegimeResult` as JSON."""

    regime: str
    branch: str
    reasons: list[str]
    target_ece: float
    lower_bound: NotRequired[IntervalRecord]
    upper_bound: NotRequired[IntervalRecord]
    critical_accuracy: NotRequired[IntervalRecord]
    unexplained: NotRequired[IntervalRecord]
    debiased_ece: NotRequired[IntervalRecord]
    fine_ece: NotRequired[IntervalRecord]
    accuracy_fit: NotRequired[IntervalRecord]
    accuracy_heldout: NotRequired[IntervalRecord]
    mean_confidence_fit: NotRequired[IntervalRecord]
    mean_confidence_heldout: NotRequired[IntervalRecord]
    temperature: NotRequired[TemperatureRecord]
    n_fit: NotRequired[int]
    n_heldout: NotRequired[int]
    n_required: NotRequired[int]
    undecided: NotRequired[bool]
    tolerance: NotRequired[float]
    confidence: NotRequired[float]
    repairs: NotRequired[list[str]]


@dataclass(frozen=True, kw_only=True)
class TemperatureFindings:
    """What one temperature makes of the held-out questions; all but `value` are cross-fitted.

    Attributes:
        value: the temperature that fits all of them best.
        ece: debiased ECE after it.
        fine_ece: ECE over many bins of equal mass after it.
        auroc: AUROC of the confidence after it; None where all answers are right, or all are wrong.
        brier_skill: by how much the confidence after it beats a constant one, as a share of the Brier score
            of the chosen option that the constant has.
    """

    value: float
    ece: Interval
    fine_ece: Interval
    auroc: Interval | None
    brier_skill: Interval

    @property
    def has_resolution(self) -> bool:
        """Whether the confidence is shown to tell right answers from wrong ones."""
        return self.auroc is not None and self.auroc.low > 0.5 and self.brier_skill.low > 0


@dataclass(frozen=True, kw_only=True)
class RegimeResult:
    """What the regime test found. Intervals have the coverage `confidence`; probabilities lie in [0, 1].

    Attributes:
        regime: `calibrated`, `calibratable` or `non_calibratable`.
        branch: the answer that follows: `none`, `temperature`, `cft` or `rcft`.
        lower_bound: max(0, accuracy_fit - critical_accuracy): what the calibration error on `fit` and the
            distance from the target model add up to at least.
        upper_bound: held-out binned ECE as measured; its upper limit is the bound.
        critical_accuracy: the target model's expected accuracy; low = value = high where it was given.
        unexplained: accuracy_fit less the accuracy of held-out questions of the same confidence: what easier
            questions don't explain.
        debiased_ece: held-out ECE less what sampling noise adds to it; the decision rests on its limits.
        fine_ece: held-out ECE over many bins of equal mass, in which errors that cancel inside a wide bin
            show; the value is the median-unbiased estimate.
        accuracy_fit: share of right answers among the questions trained on.
        accuracy_heldout: share of right answers among questions never trained on.
        mean_confidence_fit: mean probability of the top option there.
        mean_confidence_heldout: the same, held out.
        temperature: what one temperature makes of the held-out questions.
        n_fit: questions in `fit`.
        n_heldout: questions in `heldout`.
        n_required: questions that each of the two needed.
        undecided: whether the interval of `debiased_ece` holds the target, so that neither side was shown.
        target_ece: the target that was asked for.
        tolerance: lower bound that was tolerated.
        confidence: coverage of the intervals.
        repairs: the answers that were allowed beside `none`.
        reasons: the decision in sentences.
    """

    regime: Regime
    branch: Branch
    lower_bound: Interval
    upper_bound: Interval
    critical_accuracy: Interval
    unexplained: Interval
    debiased_ece: Interval
    fine_ece: Interval
    accuracy_fit: Interval
    accuracy_heldout: Interval
    mean_confidence_fit: Interval
    mean_confidence_heldout: Interval
    temperature: TemperatureFindings
    n_fit: int
    n_heldout: int
    n_required: int
    undecided: bool
    target_ece: float
    tolerance: float
    confidence: float
    repairs: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def has_memorised(self) -> bool:
        """Whether accuracy on `fit` is shown to be above the target model's, and not for easier questions."""
        return self.lower_bound.low > self.tolerance and self.unexplained.low > EXPLAINED

    def to_dict(self) -> RegimeRecord:
        """The same as JSON values, intervals as `{value, low, high}`."""
        lists = {"repairs": list(self.repairs), "reasons": list(self.reasons)}
        return cast(RegimeRecord, asdict(self, dict_factory=json_fields) | lists)

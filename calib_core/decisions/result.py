"""What the regime test found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from calib_core.metrics.bootstrap import Interval

Regime = Literal["calibrated", "calibratable", "non_calibratable"]


@dataclass(frozen=True, kw_only=True)
class RegimeResult:
    """What the regime test found. Intervals have the coverage `confidence`; probabilities lie in [0, 1].

    Attributes:
        regime: `calibrated`, `calibratable` or `non_calibratable`.
        lower_bound: max(0, accuracy_fit - critical_accuracy): what memorising leaves of calibration error at
            least.
        upper_bound: held-out binned ECE as measured; its upper limit is the bound.
        information_bound: sqrt((cross_entropy_nats - entropy_nats) / 2), which bounds the ECE from above by
            (U).
        critical_accuracy: the target model's expected accuracy; low = value = high where it was given.
        debiased_ece: held-out ECE less what sampling noise adds to it; the decision rests on its limits.
        accuracy_fit: share of right answers among the questions trained on.
        accuracy_heldout: share of right answers among questions never trained on.
        mean_confidence_fit: mean probability of the top option there.
        mean_confidence_heldout: the same, held out.
        cross_entropy_nats: held-out negative log-likelihood over the options, CE(p).
        entropy_nats: the estimate of H(q): entropy of the temperature-scaled model.
        n_fit: questions in `fit`.
        n_heldout: questions in `heldout`.
        n_required: questions that each of the two needed.
        undecided: whether the interval of `debiased_ece` holds the target, so that neither side was shown.
        target_ece: the target that was asked for.
        tolerance: lower bound that was tolerated.
        confidence: coverage of the intervals.
        reasons: the decision in sentences.
    """

    regime: Regime
    lower_bound: Interval
    upper_bound: Interval
    information_bound: Interval
    critical_accuracy: Interval
    debiased_ece: Interval
    accuracy_fit: Interval
    accuracy_heldout: Interval
    mean_confidence_fit: Interval
    mean_confidence_heldout: Interval
    cross_entropy_nats: float
    entropy_nats: float
    n_fit: int
    n_heldout: int
    n_required: int
    undecided: bool
    target_ece: float
    tolerance: float
    confidence: float
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values, intervals as `{value, low, high}`."""
        return {**asdict(self), "reasons": list(self.reasons)}

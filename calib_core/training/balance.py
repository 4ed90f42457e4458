"""The weights that hold confidence back, found on the calibration fold while a run goes on.

No fixed weight is right: one that suffices before a model memorises is too weak after it, and one that is
strong enough then makes a model too cautious earlier. The calibration fold is scored anyway, and its mean
confidence less its accuracy says which way to go. The rule is this project's (a multiplier that rises while
its constraint is violated); it costs no forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from calib_core.training.stopping import Evaluation

SHOWN = 2.0
"""Standard errors at which over- or underconfidence counts as shown."""

FACTOR, LARGEST_FACTOR = 2.0, 16.0
"""What one evaluation multiplies `lambda_ece` by, and how far it may go from where it began, either way."""

SMOOTHING_STEP, MOST_SMOOTHING = 0.05, 0.2
"""What one evaluation adds to the label smoothing, and how far it may rise."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What holds confidence back in each loss.

    Attributes:
        lambda_ece: weight of the EM-ECE loss in RCFT.
        label_smoothing: share of the answer's probability that CFT spreads evenly over the options.
    """

    lambda_ece: float
    label_smoothing: float


def rebalanced(weights: Weights, start: Weights, evaluation: Evaluation) -> Weights:
    """The weights to go on with after an evaluation; only those of the loss that led to it change.

    Args:
        weights: those that led to the evaluation.
        start: those that the run began with; they bound the range.
        evaluation: of the calibration fold.
    """
    excess = evaluation.mean_confidence - evaluation.accuracy
    if abs(excess) <= SHOWN * evaluation.gap_standard_error:
        return weights
    if evaluation.objective == "rcft":
        lowest, highest = start.lambda_ece / LARGEST_FACTOR, start.lambda_ece * LARGEST_FACTOR
        moved = weights.lambda_ece * (FACTOR if excess > 0 else 1 / FACTOR)
        return replace(weights, lambda_ece=min(max(moved, lowest), highest))
    moved = weights.label_smoothing + (SMOOTHING_STEP if excess > 0 else -SMOOTHING_STEP)
    highest = max(MOST_SMOOTHING, start.label_smoothing)
    return replace(weights, label_smoothing=min(max(moved, 0.0), highest))

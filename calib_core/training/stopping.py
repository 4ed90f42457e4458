"""Where training stops and which evaluation is kept: decided on the calibration fold, never on fit or test.

The rules (this project's; Xiao et al. 2025 train a fixed number of epochs):

* aim `calibration`: stop once the held-out NLL, a proper score of accuracy and calibration together, has not
  improved for `patience` evaluations. Keep the lowest NLL among the evaluations that are shown to be
  calibrated (upper limit of the debiased ECE at or below the target); where none is, the lowest NLL of all.
* aim `accuracy`: stop once held-out accuracy has not risen for `patience` evaluations. Keep the highest
  accuracy less the ECE in excess of the target: a point of accuracy is not bought with more than a point of
  overconfidence.

Both are total orders on evaluations, so that one adapter need be kept while a run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calib_core.metrics.figures import conf_ece, nll_nats
from calib_core.metrics.gaps import debiased_ece_interval
from calib_core.predictions.table import Predictions


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of the calibration fold at one point of a training run.

    Attributes:
        step: optimiser steps taken.
        epoch: passes over the fit fold, with its fraction.
        objective: `cft` or `rcft`, the loss that led here.
        train_loss: mean loss since the evaluation before; None before the first step.
        accuracy: share of right answers.
        mean_confidence: mean probability of the top option.
        conf_ece: plain binned ECE.
        debiased_ece: ECE less what sampling noise adds to it.
        debiased_ece_high: upper limit of its interval.
        nll_nats: mean negative log-likelihood of the right option.
        n: questions in the fold.
    """

    step: int
    epoch: float
    objective: str
    train_loss: float | None
    accuracy: float
    mean_confidence: float
    conf_ece: float
    debiased_ece: float
    debiased_ece_high: float
    nll_nats: float
    n: int


def evaluate_heldout(
    predictions: Predictions,
    *,
    step: int,
    epoch: float,
    objective: str,
    train_loss: float | None,
    n_bins: int,
) -> Evaluation:
    """Measure the calibration fold's predictions at one point of a run."""
    confidence, correct = predictions.confidence(), predictions.correct()
    debiased = debiased_ece_interval(confidence, correct, n_bins=n_bins)
    return Evaluation(
        step=step,
        epoch=epoch,
        objective=objective,
        train_loss=train_loss,
        accuracy=float(correct.mean()),
        mean_confidence=float(confidence.mean()),
        conf_ece=conf_ece(confidence, correct, n_bins=n_bins),
        debiased_ece=debiased.value,
        debiased_ece_high=debiased.high,
        nll_nats=nll_nats(predictions.probs(), predictions.labels),
        n=len(predictions),
    )


def best_evaluation(history: Sequence[Evaluation], *, aim: str, target_ece: float) -> int:
    """Index of the evaluation to keep, by the rule of `aim` (see the module's text).

    Args:
        history: evaluations of a run, in order; at least one.
        aim: `calibration` or `accuracy`.
        target_ece: ECE at or below which an evaluation counts as calibrated.
    """
    return max(range(len(history)), key=lambda i: _merit(history[i], aim, target_ece))


def _merit(evaluation: Evaluation, aim: str, target_ece: float) -> tuple[float, float]:
    excess = max(0.0, evaluation.debiased_ece_high - target_ece)
    if aim == "accuracy":
        return (evaluation.accuracy - excess, -evaluation.nll_nats)
    return (float(excess == 0), -evaluation.nll_nats)


def should_stop(history: Sequence[Evaluation], *, aim: str, patience: int) -> bool:
    """Whether the last `patience` evaluations brought no improvement over the ones before them."""
    if len(history) <= patience:
        return False
    scores = [e.accuracy if aim == "accuracy" else -e.nll_nats for e in history]
    return max(scores[-patience:]) <= max(scores[:-patience])

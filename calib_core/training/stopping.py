"""Where training stops and which evaluation is kept: decided on the calibration fold, never on fit or test.

The rules (this project's; Xiao et al. 2025 train a fixed number of epochs) look at a model with the
temperature that it would be given (Guo et al. 2017), cross-fitted so that no question is scored with a
temperature that it helped to choose. Confidence that one number puts right costs a model nothing; what it
knows about the questions decides.

* aim `calibration`: keep the lowest held-out NLL, a proper score of accuracy and calibration together.
* aim `accuracy`: keep the highest accuracy less the ECE in excess of the target: a point of accuracy is not
  bought with more than a point of overconfidence.
* Stop once `patience` evaluations have brought nothing better, but never while accuracy has not been shown to
  exceed guessing: until letters are tied to answers, no figure moves, and the run has not begun to learn.

Both aims are total orders on evaluations, so that one adapter need be kept while a run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calib_core.decisions.temperature import cross_fitted, fit_temperature
from calib_core.metrics.figures import conf_ece, nll_nats
from calib_core.metrics.gaps import debiased_ece_interval
from calib_core.metrics.means import wilson
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
        letter_mass: mean share of the vocabulary's probability on the letters; None where it isn't known.
        conf_ece: plain binned ECE.
        debiased_ece: ECE less what sampling noise adds to it.
        debiased_ece_high: upper limit of its interval.
        nll_nats: mean negative log-likelihood of the right option.
        gap_standard_error: standard error of mean confidence less accuracy.
        temperature: what the model's logits are to be divided by; 1 where that would not lower the NLL.
        tempered_nll_nats: NLL with a cross-fitted temperature; `nll_nats` where that is lower.
        tempered_ece_high: upper limit of the debiased ECE, with the same.
        above_chance: whether accuracy is shown to exceed guessing.
        lambda_ece: weight of the EM-ECE loss that led here.
        label_smoothing: label smoothing that led here.
        n: questions in the fold.
    """

    step: int
    epoch: float
    objective: str
    train_loss: float | None
    accuracy: float
    mean_confidence: float
    letter_mass: float | None = None
    conf_ece: float
    debiased_ece: float
    debiased_ece_high: float
    nll_nats: float
    gap_standard_error: float
    temperature: float
    tempered_nll_nats: float
    tempered_ece_high: float
    above_chance: bool
    lambda_ece: float
    label_smoothing: float
    n: int


def evaluate_heldout(
    predictions: Predictions,
    *,
    step: int,
    epoch: float,
    objective: str,
    train_loss: float | None,
    lambda_ece: float,
    label_smoothing: float,
    n_bins: int,
) -> Evaluation:
    """Measure the calibration fold's predictions at one point of a run."""
    confidence, correct = predictions.confidence(), predictions.correct()
    debiased = debiased_ece_interval(confidence, correct, n_bins=n_bins)
    nll = nll_nats(predictions.probs(), predictions.labels)
    tempered = cross_fitted(predictions)
    tempered_nll = nll_nats(tempered.probs(), tempered.labels)
    helps = tempered_nll < nll
    return Evaluation(
        step=step,
        epoch=epoch,
        objective=objective,
        train_loss=train_loss,
        accuracy=float(correct.mean()),
        mean_confidence=float(confidence.mean()),
        letter_mass=None if predictions.letter_mass is None else float(predictions.letter_mass.mean()),
        conf_ece=conf_ece(confidence, correct, n_bins=n_bins),
        debiased_ece=debiased.value,
        debiased_ece_high=debiased.high,
        nll_nats=nll,
        gap_standard_error=float((confidence - correct).std() / math.sqrt(len(predictions))),
        temperature=fit_temperature(predictions) if helps else 1.0,
        tempered_nll_nats=min(nll, tempered_nll),
        tempered_ece_high=(
            debiased_ece_interval(tempered.confidence(), correct, n_bins=n_bins).high
            if helps
            else debiased.high
        ),
        above_chance=wilson(correct.mean(), len(predictions))[0] > float((1 / predictions.n_options).mean()),
        lambda_ece=lambda_ece,
        label_smoothing=label_smoothing,
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


def _merit(evaluation: Evaluation, aim: str, target_ece: float) -> tuple[float, ...]:
    if aim == "accuracy":
        excess = max(0.0, evaluation.tempered_ece_high - target_ece)
        return (evaluation.accuracy - excess, -evaluation.tempered_nll_nats)
    return (-evaluation.tempered_nll_nats,)


def should_stop(history: Sequence[Evaluation], *, aim: str, patience: int) -> bool:
    """Whether the last `patience` evaluations brought no improvement over the ones before them.

    While accuracy has not been shown to exceed guessing, a run goes on whatever the figures say.
    """
    if len(history) <= patience or not any(evaluation.above_chance for evaluation in history):
        return False
    scores = [e.accuracy if aim == "accuracy" else -e.tempered_nll_nats for e in history]
    return max(scores[-patience:]) <= max(scores[:-patience])

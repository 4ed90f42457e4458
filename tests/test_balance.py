"""The weights that follow the calibration fold while a run goes on."""

from __future__ import annotations

import pytest

from calib_core.training.balance import LARGEST_FACTOR, MOST_SMOOTHING, Weights, rebalanced
from calib_core.training.stopping import Evaluation

START = Weights(lambda_ece=1.0, label_smoothing=0.0)


def evaluation(excess: float, objective: str, standard_error: float = 0.02) -> Evaluation:
    return Evaluation(
        step=0,
        epoch=0.0,
        objective=objective,
        train_loss=None,
        accuracy=0.5,
        mean_confidence=0.5 + excess,
        conf_ece=0.1,
        debiased_ece=0.1,
        debiased_ece_high=0.1,
        nll_nats=1.0,
        gap_standard_error=standard_error,
        temperature=1.0,
        tempered_nll_nats=1.0,
        tempered_ece_high=0.1,
        above_chance=True,
        lambda_ece=1.0,
        label_smoothing=0.0,
        n=500,
    )


@pytest.mark.parametrize(
    ("excess", "objective", "weights"),
    [
        (0.05, "rcft", (2.0, 0.1)),
        (-0.05, "rcft", (0.5, 0.1)),
        (0.05, "cft", (1.0, 0.15)),
        (-0.05, "cft", (1.0, 0.05)),
        (0.03, "rcft", (1.0, 0.1)),
        (-0.03, "cft", (1.0, 0.1)),
    ],
)
def test_only_what_is_shown_moves_the_weight_of_the_loss_that_led_there(excess, objective, weights) -> None:
    now = Weights(lambda_ece=1.0, label_smoothing=0.1)
    moved = rebalanced(now, START, evaluation(excess, objective))
    assert (moved.lambda_ece, moved.label_smoothing) == pytest.approx(weights)


@pytest.mark.parametrize("objective", ["cft", "rcft"])
@pytest.mark.parametrize("excess", [0.3, -0.3])
def test_weights_stay_in_their_range(excess, objective) -> None:
    weights = START
    for _ in range(50):
        weights = rebalanced(weights, START, evaluation(excess, objective))
    at = (
        (LARGEST_FACTOR if excess > 0 else 1 / LARGEST_FACTOR, 0.0)
        if objective == "rcft"
        else (1.0, MOST_SMOOTHING if excess > 0 else 0.0)
    )
    assert (weights.lambda_ece, weights.label_smoothing) == pytest.approx(at)


def test_a_weight_of_zero_stays_zero() -> None:
    off = Weights(lambda_ece=0.0, label_smoothing=0.0)
    assert rebalanced(off, off, evaluation(0.3, "rcft")).lambda_ece == 0

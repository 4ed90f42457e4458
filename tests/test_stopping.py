"""Which evaluation is kept and when training stops."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_world, tempered

from calib_core.decisions.temperature import cross_fitted, fit_temperature
from calib_core.metrics.figures import conf_ece
from calib_core.metrics.gaps import debiased_ece_interval
from calib_core.predictions.table import Predictions
from calib_core.training.stopping import Evaluation, best_evaluation, evaluate_heldout, should_stop

TARGET = 0.08


def evaluation(
    *, nll: float = 1.0, accuracy: float = 0.5, high: float = 0.2, above_chance: bool = True
) -> Evaluation:
    return Evaluation(
        step=0,
        epoch=0.0,
        objective="cft",
        train_loss=None,
        accuracy=accuracy,
        mean_confidence=0.5,
        conf_ece=0.1,
        debiased_ece=0.1,
        debiased_ece_high=0.9,
        nll_nats=9.9,
        gap_standard_error=0.05,
        temperature=2.0,
        tempered_nll_nats=nll,
        tempered_ece_high=high,
        above_chance=above_chance,
        lambda_ece=1.0,
        label_smoothing=0.0,
        n=100,
    )


def kept(history: list[Evaluation], aim: str) -> int:
    return best_evaluation(history, aim=aim, target_ece=TARGET)


@pytest.mark.parametrize(
    ("history", "best"),
    [
        pytest.param([{"nll": 1.0}, {"nll": 0.7}, {"nll": 0.9}], 1, id="lowest NLL"),
        pytest.param([{"nll": 0.7, "high": 0.5}, {"nll": 0.9, "high": 0.01}], 0, id="no calibrated guesser"),
        pytest.param([{"nll": 0.7}, {"nll": 0.7}], 0, id="the first of equals"),
        pytest.param([{"accuracy": 0.3, "nll": 0.6}, {"accuracy": 0.9, "nll": 0.7}], 0, id="accuracy aside"),
    ],
)
def test_aim_calibration_keeps(history, best) -> None:
    assert kept([evaluation(**one) for one in history], "calibration") == best


@pytest.mark.parametrize(
    ("history", "best"),
    [
        pytest.param([{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": 0.6}], 1, id="highest accuracy"),
        # 0.70 - (0.20 - 0.08) = 0.58 against 0.60 - 0 = 0.60: ten points bought with twelve of ECE.
        pytest.param([{"accuracy": 0.7, "high": 0.2}, {"accuracy": 0.6, "high": 0.08}], 1, id="excess"),
        # 0.70 - (0.17 - 0.08) = 0.61 against 0.60: ten points bought with nine.
        pytest.param([{"accuracy": 0.7, "high": 0.17}, {"accuracy": 0.6, "high": 0.0}], 0, id="worth it"),
        pytest.param([{"nll": 0.9}, {"nll": 0.7}], 1, id="lower NLL between equals"),
        pytest.param([{"nll": 0.7}, {"nll": 0.7}], 0, id="the first of equals"),
    ],
)
def test_aim_accuracy_keeps(history, best) -> None:
    assert kept([evaluation(**one) for one in history], "accuracy") == best


# Few distinct values, so that ties and near ties come up.
share = st.sampled_from([0.0, 0.05, TARGET, 0.09, 0.3, 0.5, 0.55, 1.0])
histories = st.lists(
    st.builds(
        lambda nll, accuracy, high: evaluation(nll=nll, accuracy=accuracy, high=high),
        st.sampled_from([0.5, 0.6, 0.6000001, 2.0]),
        share,
        share,
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("aim", ["calibration", "accuracy"])
@given(history=histories)
def test_keeping_the_better_of_two_one_at_a_time_ends_with_the_best_of_all(history, aim) -> None:
    best = 0
    for index in range(1, len(history)):
        if kept([history[best], history[index]], aim) == 1:
            best = index
        # What a run does: it keeps an adapter when its evaluation is the best of those so far.
        assert kept(history[: index + 1], aim) == best


def stops(aim: str, values: list[float], patience: int) -> list[bool]:
    field = "nll" if aim == "calibration" else "accuracy"
    history = [evaluation(**{field: value}) for value in values]
    return [should_stop(history[: n + 1], aim=aim, patience=patience) for n in range(len(history))]


def test_patience_counts_evaluations_since_the_lowest_nll() -> None:
    assert stops("calibration", [1.0, 0.8, 0.9, 0.7, 0.7, 0.71], 2) == [False] * 5 + [True]
    assert stops("calibration", [1.0, 0.8, 0.9, 0.7], 1) == [False, False, True, False]
    assert stops("calibration", [1.0, 1.1, 1.2, 1.3], 3) == [False] * 3 + [True]


def test_patience_counts_evaluations_since_the_highest_accuracy() -> None:
    assert stops("accuracy", [0.5, 0.6, 0.6, 0.61, 0.5, 0.61], 2) == [False] * 5 + [True]


def test_the_other_figure_does_not_stop_training() -> None:
    worse_nll = [evaluation(nll=1 + i, accuracy=0.1 * i) for i in range(5)]
    assert not should_stop(worse_nll, aim="accuracy", patience=2)
    assert should_stop(worse_nll, aim="calibration", patience=2)
    worse_accuracy = [evaluation(nll=2 - 0.1 * i, accuracy=0.9 - 0.1 * i) for i in range(5)]
    assert not should_stop(worse_accuracy, aim="calibration", patience=2)
    assert should_stop(worse_accuracy, aim="accuracy", patience=2)


@pytest.mark.parametrize("aim", ["calibration", "accuracy"])
def test_patience_does_not_count_before_accuracy_exceeds_guessing(aim) -> None:
    guessing = [evaluation(nll=1.39, accuracy=0.25, above_chance=False)] * 9
    assert not should_stop(guessing, aim=aim, patience=2)
    learnt = [*guessing, evaluation(nll=1.2, accuracy=0.4)]
    assert not should_stop(learnt, aim=aim, patience=2)
    assert should_stop([*learnt, *guessing[:2]], aim=aim, patience=2)


@pytest.mark.parametrize(("power", "helps"), [(3.0, True), (1.0, False)])
def test_a_temperature_is_given_only_where_it_lowers_the_nll(power, helps) -> None:
    world = make_world(2000, 1)
    predictions = world.predictions(tempered(world.q, 1 / power))
    found = measured(predictions)
    plain = -np.log(predictions.probs()[np.arange(2000), predictions.labels]).mean()
    if helps:  # p is q to the power of 3: dividing the logits by 3 gives q back
        assert found.temperature == pytest.approx(power, rel=0.1)
        assert found.tempered_nll_nats < plain - 0.05
        assert found.tempered_ece_high < found.debiased_ece_high
    else:
        assert found.temperature == pytest.approx(1, rel=0.1)
        assert found.tempered_nll_nats <= plain


@pytest.mark.parametrize(
    ("right", "above"), [(0.25, False), (0.28, False), (0.32, True)]
)  # of 500: 0.28 has a lower limit of 0.243
def test_above_chance_is_shown_not_seen(right, above) -> None:
    n = 500
    logits = np.zeros((n, 4), dtype=np.float32)
    logits[np.arange(n), np.where(np.arange(n) < round(right * n), 0, 1)] = 1
    predictions = Predictions(
        ids=tuple(map(str, range(n))),
        labels=np.zeros(n, dtype=np.int64),
        logits=logits,
        n_options=np.full(n, 4),
        subjects=(None,) * n,
    )
    assert measured(predictions).above_chance is above


def measured(predictions: Predictions) -> Evaluation:
    return evaluate_heldout(
        predictions,
        step=7,
        epoch=1.5,
        objective="rcft",
        train_loss=0.25,
        lambda_ece=2.0,
        label_smoothing=0.1,
        n_bins=7,
    )


def test_evaluation_measures_the_predictions() -> None:
    world = make_world(300, 0)
    predictions = world.predictions(tempered(world.q, 0.5))
    found = measured(predictions)
    crossed = cross_fitted(predictions)
    nll = -np.log(p_of(crossed)).mean()
    p, labels = predictions.probs(), predictions.labels
    conf, correct = p.max(axis=1), (p.argmax(axis=1) == labels).astype(float)
    interval = debiased_ece_interval(conf, correct, n_bins=7)
    expected = Evaluation(
        step=7,
        epoch=1.5,
        objective="rcft",
        train_loss=0.25,
        accuracy=correct.mean(),
        mean_confidence=conf.mean(),
        conf_ece=conf_ece(conf, correct, n_bins=7),
        debiased_ece=interval.value,
        debiased_ece_high=interval.high,
        nll_nats=-np.log(p[np.arange(300), labels]).mean(),
        gap_standard_error=np.std(conf - correct) / np.sqrt(300),
        temperature=fit_temperature(predictions),
        tempered_nll_nats=nll,
        tempered_ece_high=debiased_ece_interval(crossed.confidence(), correct, n_bins=7).high,
        above_chance=True,
        lambda_ece=2.0,
        label_smoothing=0.1,
        n=300,
    )
    for name, value in asdict(expected).items():
        assert getattr(found, name) == (pytest.approx(value, abs=1e-12) if name != "objective" else value)


def p_of(predictions: Predictions) -> np.ndarray:
    return predictions.probs()[np.arange(len(predictions)), predictions.labels]

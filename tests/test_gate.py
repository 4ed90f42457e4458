"""The gate promotes on evidence only, and says its reasons with the figures."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from calib_core.decisions.budget import History
from calib_core.decisions.gate import decide
from calib_core.decisions.temperature import apply_temperature
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.metrics.figures import conf_ece
from calib_core.metrics.interval import Interval
from calib_core.predictions.table import Predictions


def make(
    n: int = 1000, *, sharpness: float = 1.0, flipped: int = 0, seed: int = 0, spread: float = 1.5
) -> Predictions:
    """Calibrated at sharpness 1 (labels are drawn from the model), overconfident above.

    In `flipped` rows that were right the top option changes places with another one, so that they become
    wrong.
    """
    rng = np.random.default_rng(seed)
    z = spread * rng.normal(size=(n, 4))
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (rng.random(n)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    z = z * sharpness
    for row in np.flatnonzero(z.argmax(axis=1) == labels)[:flipped]:
        z[row] = np.roll(z[row], 1)
    return Predictions(
        ids=tuple(f"q{i}" for i in range(n)),
        labels=labels,
        logits=z.astype(np.float32),
        n_options=np.full(n, 4),
        subjects=(None,) * n,
        protocol={"model": "m", "adapter": f"{sharpness}-{flipped}"},
    )


def test_a_repaired_model_is_promoted() -> None:
    before, after = make(sharpness=4), make()
    result = decide(before, after)
    assert result.promoted
    change = conf_ece(after.confidence(), after.correct()) - conf_ece(before.confidence(), before.correct())
    assert result.ece_change.value == pytest.approx(change, abs=1e-12)
    assert result.ece_change.low <= change <= result.ece_change.high < 0
    assert result.accuracy_change.value == 0
    assert f"{change:+.4f} on 1,000 test questions" in result.reasons[0]
    assert "it fell" in result.reasons[0]
    assert "promoted" in result.reasons[-1]


def test_no_fall_of_the_ece_keeps_the_input_model() -> None:
    before = make()
    same = decide(before, replace(before, protocol={"model": "m", "adapter": "other"}))
    assert not same.promoted
    assert "a fall is not shown" in same.reasons[0]
    assert "input model is kept" in same.reasons[-1]
    worse = decide(before, make(sharpness=4))
    assert not worse.promoted
    assert "above zero: it rose" in worse.reasons[0]


def test_a_fall_that_few_questions_cannot_show_is_not_enough() -> None:
    # The same two models: 40 questions see a smaller ECE but can't show it.
    before, after = make(40, sharpness=1.3, seed=1), make(40, seed=1)
    result = decide(before, after)
    assert result.ece_change.value < 0 < result.ece_change.high
    assert not result.promoted


def test_accuracy_is_held_by_its_lower_limit_not_as_measured() -> None:
    """A fall of half the margin as measured, on questions too few to show that it isn't twice the margin."""
    before, after = make(sharpness=4), make(flipped=5)
    few = decide(before, after, accuracy_margin=0.01)
    assert few.accuracy_change.value == pytest.approx(-0.005, abs=1e-12)
    assert few.accuracy_change.low < -0.01 < few.accuracy_change.value
    assert few.criteria["ece_fell"]
    assert few.criteria["brier_held"]
    assert not few.criteria["accuracy_held"]
    assert not few.promoted
    assert "not shown to have held within the accepted 0.01" in few.reasons[1]
    assert "questions or a margin of 0.0" in few.reasons[1]
    more = decide(make(4000, sharpness=4), make(4000, flipped=5), accuracy_margin=0.01)
    assert more.promoted
    assert "it held, within the accepted 0.01" in more.reasons[1]


def test_a_fall_beyond_the_margin_is_said() -> None:
    result = decide(make(sharpness=4), make(flipped=60), accuracy_margin=0.01)
    assert not result.promoted
    assert "it fell by more than the accepted 0.01" in result.reasons[1]


def test_one_temperature_changes_no_answer_so_no_margin_is_needed() -> None:
    result = decide(make(355, sharpness=4), make(355), accuracy_margin=0)
    assert result.promoted
    assert result.accuracy_change == Interval(0.0, 0.0, 0.0)
    # The same answers by a model whose confidences are in another order are no proof for other questions.
    other = make(355)
    rank = np.argsort(np.argsort(other.confidence()))
    conf = np.sort(other.confidence())[::-1][rank]
    table = with_confidence(other, conf)
    assert decide(make(355, sharpness=4), table).accuracy_change.low < 0


def with_confidence(table: Predictions, conf: Any) -> Predictions:
    """The same answers with these confidences, the rest shared evenly."""
    rest = np.repeat(((1 - np.asarray(conf)) / 3)[:, None], 4, axis=1)
    rest[np.arange(len(table)), table.top()] = conf
    return replace(table, logits=np.log(rest), protocol={"model": "m", "adapter": "attack"})


def constant(table: Predictions) -> Predictions:
    return with_confidence(table, np.full(len(table), table.correct().mean()))


def random_confidences(table: Predictions) -> Predictions:
    rng = np.random.default_rng(8)
    return with_confidence(table, np.clip(rng.normal(table.correct().mean(), 0.05, len(table)), 0.3, 0.99))


def remainder_on_one_letter(table: Predictions) -> Predictions:
    top, conf, rows = table.top(), table.confidence(), np.arange(len(table))
    p = np.full((len(table), 4), 1e-6)
    p[rows, np.where(top == 0, 1, 0)] = np.minimum(1 - conf, conf - 1e-6)
    p[rows, top] = conf
    return replace(table, logits=np.log(p), protocol={"model": "m", "adapter": "attack"})


@pytest.mark.parametrize("attack", [constant, random_confidences, remainder_on_one_letter])
@pytest.mark.parametrize("n", [800, 2000])
def test_a_small_calibration_error_that_tells_nothing_is_not_enough(attack: Any, n: int) -> None:
    for seed in range(3):
        before, good = make(n, sharpness=4, seed=seed), make(n, seed=seed)
        assert decide(before, good, n_resamples=200).promoted
        result = decide(before, attack(good), n_resamples=200)
        assert result.criteria["ece_fell"]
        assert result.criteria["accuracy_held"]
        assert not result.criteria["brier_held"]
        assert not result.promoted
        text = " ".join(result.reasons)
        assert all(word in text for word in ("Brier score", "NLL", "AUROC"))


def test_a_ranking_that_is_lost_is_not_promoted_though_it_was_worth_little() -> None:
    """Where the input model tells little, its Brier score is soon reached by a constant confidence."""
    before, good = make(4000, sharpness=4, spread=0.5), make(4000, spread=0.5)
    result = decide(before, constant(good), brier_margin=0.5)
    assert result.criteria["brier_held"]
    assert result.auroc_before.low > 0.5
    assert not result.criteria["ranking_held"]
    assert "not shown to tell right answers from wrong ones any more" in " ".join(result.reasons)


def test_the_temperature_of_other_questions_is_used_where_it_is_given() -> None:
    before, after = make(sharpness=4), make()
    own, given = decide(before, after), decide(before, after, temperature=4.0)
    assert own.brier_change.value == pytest.approx(0, abs=1e-3)
    assert given.brier_change.value == pytest.approx(0, abs=1e-6)
    assert decide(before, after, temperature=0.5).brier_change.high < -0.1


def test_the_win_rate_has_a_margin_of_its_own() -> None:
    before, after = make(sharpness=4), make()
    kept = np.tile([1.0, 1.0, 0.0, 0.5], 150)
    lost = np.where(np.arange(600) % 20 == 0, 0.0, kept)
    assert decide(before, after, wins=(kept, kept)).criteria["win_rate_held"]
    fallen = decide(before, after, wins=(kept, lost))
    assert not fallen.promoted
    assert "it is not shown to have held within the accepted 0.05" in fallen.reasons[-2]
    assert decide(before, after, wins=(kept, lost), win_rate_margin=0.1).promoted
    few = decide(before, after, wins=(kept[:20], 1 - kept[:20]))
    assert not few.promoted
    assert "win rate changed by -0.2500 on 20 pairs" in few.reasons[-2]
    for wrong in ((kept, kept[1:]), (kept, kept + 1), (kept[:0], kept[:0])):
        with pytest.raises(DataFormatError, match="wins"):
            decide(before, after, wins=wrong)


def test_comparisons_within_a_year_share_one_budget() -> None:
    before, after = make(sharpness=4), make(flipped=1)
    levels = [decide(before, after, history=History(comparisons=k), n_resamples=100) for k in (0, 9, 51)]
    assert [result.level for result in levels] == [0.01, 0.001, pytest.approx(0.01 / 52)]
    assert [result.comparison for result in levels] == [1, 10, 52]
    for one, later in itertools.pairwise(levels):
        for name in ("ece_change", "accuracy_change", "brier_change", "auroc_after"):
            assert getattr(later, name).low < getattr(one, name).low
            assert getattr(later, name).high > getattr(one, name).high
    assert sum(History(comparisons=k).level for k in range(52)) < 0.05
    assert sum(History(comparisons=k).level for k in range(500)) < 0.05
    used_up = decide(before, make(), history=History(comparisons=90))
    assert not used_up.promoted
    assert "have used up their shared error budget" in used_up.reasons[-2]
    assert decide(before, make()).promoted


def test_accuracy_since_the_first_champion_is_bounded() -> None:
    before, after = make(8000, sharpness=4), make(8000, flipped=8)
    fresh = decide(before, after)
    assert fresh.promoted
    assert fresh.accuracy_since_first == fresh.accuracy_change.low < 0
    worn = decide(before, after, history=History(accuracy_change=-0.0495))
    assert worn.accuracy_since_first == pytest.approx(-0.0495 + fresh.accuracy_change.low)
    assert not worn.promoted
    assert "more than the accepted 0.05" in " ".join(worn.reasons)
    assert decide(before, after, history=History(accuracy_change=-0.0495), total_accuracy_margin=0.1).promoted


def test_saturated_tables_are_decided() -> None:
    """Confidence 1 throughout: rounding made a square root of -1e-17 of the paired interval."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, 100)
        one, other = (
            replace(
                make(100),
                labels=labels,
                logits=np.where(np.eye(4)[rng.permuted(labels) if move else labels] > 0, 200.0, 0.0),
                protocol=None,
            )
            for move in (True, False)
        )
        for a, b in ((one, other), (other, one), (one, one)):
            result = decide(a, b, n_resamples=50)
            json.dumps(result.to_dict(), allow_nan=False)


def test_the_result_is_json() -> None:
    result = decide(make(sharpness=4), make(), n_resamples=100)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["promoted"] is True
    assert document["ece_change"] == result.ece_change.to_dict()
    assert document["reasons"] == list(result.reasons)


def other_ids(table: Predictions) -> Predictions:
    return replace(table, ids=("new", *table.ids[1:]))


def other_label(table: Predictions) -> Predictions:
    labels = table.labels.copy()
    labels[2] = (labels[2] + 1) % 4
    return replace(table, labels=labels)


def unlabelled(table: Predictions) -> Predictions:
    return replace(table, labels=np.full(len(table), -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_ids, "1 only before, 1 only after .*'q0'"),
        (lambda table: table.subset(np.arange(19)), "1 only before, 0 only after"),
        (lambda table: table.subset(np.arange(20)[::-1]), "different orders"),
        (other_label, "row 3, id 'q2', field 'label'"),
        (lambda table: replace(table, protocol={"model": "another"}), "model: 'm' and 'another'"),
        (lambda table: replace(table, protocol=None), "has no protocol"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(change: Any, message: str) -> None:
    before = make(20)
    with pytest.raises(DataFormatError, match=message):
        decide(before, change(before))


def test_tables_without_labels_or_rows_are_refused() -> None:
    table = unlabelled(make(20))
    with pytest.raises(DataFormatError, match="20 of 20 rows have no label"):
        decide(table, table)
    empty = make(20).subset(np.zeros(20, bool))
    with pytest.raises(NotEnoughDataError):
        decide(empty, empty)


@pytest.mark.parametrize("margin", [-0.01, 1.5, float("nan")])
def test_a_wrong_margin_is_refused(margin: float) -> None:
    with pytest.raises(ConfigError, match=r"accuracy_margin must lie in .*; win_rate_margin must lie in"):
        decide(make(20), make(20), accuracy_margin=margin, win_rate_margin=margin)


def test_temperature_scaling_alone_passes_the_gate() -> None:
    before = make(sharpness=4)
    result = decide(before, apply_temperature(before, 4.0))
    assert result.promoted
    assert result.accuracy_change.to_dict() == {"value": 0, "low": 0, "high": 0}

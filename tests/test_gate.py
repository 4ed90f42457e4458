"""The gate promotes on evidence only, and says its reasons with the figures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from calib_core.decisions.gate import decide
from calib_core.decisions.temperature import apply_temperature
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.metrics.figures import conf_ece
from calib_core.predictions.table import Predictions


def make(n: int = 1000, *, sharpness: float = 1.0, flipped: int = 0, seed: int = 0) -> Predictions:
    """Calibrated at sharpness 1 (labels are drawn from the model), overconfident above.

    In `flipped` rows that were right the top option changes places with another one, so that they become
    wrong.
    """
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, 4))
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
    assert "a fall isn't shown" in same.reasons[0]
    assert "input model is kept" in same.reasons[-1]
    worse = decide(before, make(sharpness=4))
    assert not worse.promoted
    assert "above zero, it rose" in worse.reasons[0]


def test_a_fall_that_few_questions_cannot_show_is_not_enough() -> None:
    # The same two models: 40 questions see a smaller ECE but can't show it.
    before, after = make(40, sharpness=1.3, seed=1), make(40, seed=1)
    result = decide(before, after)
    assert result.ece_change.value < 0 < result.ece_change.high
    assert not result.promoted


@pytest.mark.parametrize(("flipped", "promoted"), [(10, True), (11, False)])
def test_accuracy_may_fall_by_the_margin_and_no_more(flipped: int, promoted: bool) -> None:
    result = decide(make(sharpness=4), make(flipped=flipped), accuracy_margin=0.01)
    assert result.accuracy_change.value == pytest.approx(-flipped / 1000, abs=1e-12)
    assert result.accuracy_change.low < -flipped / 1000 < result.accuracy_change.high
    assert result.ece_change.high < 0
    assert result.promoted is promoted
    assert f"{-flipped / 1000:+.4f}" in result.reasons[1]
    assert ("it fell by more than the accepted 0.01" in result.reasons[1]) is not promoted


def test_margin_zero_accepts_an_equal_accuracy() -> None:
    assert decide(make(sharpness=4), make(), accuracy_margin=0).promoted


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
    with pytest.raises(ConfigError, match="accuracy_margin must lie in"):
        decide(make(20), make(20), accuracy_margin=margin)


def test_temperature_scaling_alone_passes_the_gate() -> None:
    before = make(sharpness=4)
    result = decide(before, apply_temperature(before, 4.0))
    assert result.promoted
    assert result.accuracy_change.to_dict() == {"value": 0, "low": 0, "high": 0}

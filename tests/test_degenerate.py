"""Tables without spread: equal confidences, gaps of exactly 0, certainty. Every search has an end."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_core import Predictions, apply_temperature, compare, fit_temperature, measure
from calib_core.decisions.bounds import regime_test, required_examples
from calib_core.decisions.gate import decide
from calib_core.decisions.temperature import one_temperature_apart
from calib_core.errors import ConfigError
from calib_core.metrics.gaps import bin_gaps, gap_sum_change, gap_sum_interval
from calib_core.metrics.interval import Interval
from calib_core.report.text import figure

N = 120


def table(kind: str, labels: str, k: int, seed: int = 0) -> Predictions:
    random = np.random.default_rng(seed)
    y = {
        "balanced": np.arange(N) % k,
        "first": np.zeros(N, dtype=int),
        "random": random.integers(0, k, N),
    }[labels]
    top = {"uniform": 1 / k, "certain": 1.0, "nearly": 1 - 1e-7, "half": max(0.5, 1 / k)}[kind]
    probs = np.full((N, k), (1 - top) / (k - 1))
    probs[:, 0] = top
    if kind == "certain":
        probs = np.eye(k)[random.integers(0, k, N)]
    return Predictions.from_probs(probs.tolist(), y.tolist())


tables = st.builds(
    table,
    st.sampled_from(["uniform", "certain", "nearly", "half"]),
    st.sampled_from(["balanced", "first", "random"]),
    st.sampled_from([2, 4, 26]),
    st.integers(0, 3),
)


def check(interval: Interval | float | None) -> None:
    if isinstance(interval, Interval):
        assert all(map(math.isfinite, asdict(interval).values()))
        assert interval.low - 1e-9 <= interval.value <= interval.high + 1e-9  # rounding in means


MOST = {"brier": 2.0, "aurc": 1.0, "accuracy": 1.0, "mean_confidence": 1.0, "conf_ece": 1.0, "auroc": 1.0}
"""What a figure can be at most; 0 at least."""


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_limits_lie_where_the_figure_can_be(n) -> None:
    random = np.random.default_rng(n)
    for scale in (0.3, 3.0, 12.0):
        for _ in range(5):
            labels = random.integers(0, 4, n)
            first, second = (
                Predictions.from_logits(scale * random.normal(size=(n, 4)), labels) for _ in range(2)
            )
            figures, change = measure(first, n_resamples=20), compare(first, second, n_resamples=20)
            for name, most in MOST.items():
                if (found := getattr(figures, name)) is not None:
                    assert 0 <= found.low <= found.high <= most, name
                if (found := getattr(change, name)) is not None:
                    assert -most <= found.low <= found.high <= most, name
            if n > 1:
                change_of_brier = decide(first, second, n_resamples=20).brier_change
                assert -2 <= change_of_brier.low <= change_of_brier.high <= 2


@settings(max_examples=40, deadline=None)
@given(predictions=tables)
def test_every_figure_and_its_interval_exists(predictions) -> None:
    figures = measure(predictions, n_resamples=60)
    for name in figures.to_dict():
        check(getattr(figures, name, None))
    assert 0.01 <= fit_temperature(predictions) <= 100


@settings(max_examples=25, deadline=None)
@given(before=tables, after=tables)
def test_two_tables_can_be_compared_and_decided_on(before, after) -> None:
    if before.logits.shape != after.logits.shape or (before.labels != after.labels).any():
        after = before
    for interval in vars(compare(before, after, n_resamples=60)).values():
        check(interval)
    assert decide(before, after, n_resamples=60).reasons


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(fit=tables, heldout=tables)
def test_the_regime_test_ends(fit, heldout) -> None:
    heldout = replace(heldout, ids=tuple(f"held-out {name}" for name in heldout.ids))
    result = regime_test(fit, heldout, target_ece=0.3, n_resamples=60)
    assert result.regime in ("calibrated", "calibratable", "non_calibratable")


@pytest.mark.parametrize("n", [1, 50])
def test_what_one_piece_of_evidence_leaves_open_is_null_in_json_and_never_beyond_a_figures_range(n) -> None:
    one = Predictions.from_probs([[0.7, 0.3]] * n, [0] * n, subjects=["all"] * n)
    figures = measure(one, cluster_by="subject", n_resamples=20).to_dict()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert (figures["brier"]["high"], figures["aurc"]["high"]) == (2.0, 1.0)
    assert figures["nll_nats"] == {"value": pytest.approx(-math.log(0.7)), "low": 0.0, "high": None}
    assert "(0.000 to ?)" in figure(figures["nll_nats"])
    change = compare(one, one, cluster_by="subject", n_resamples=20).to_dict()
    assert json.loads(json.dumps(change, allow_nan=False)) == change
    assert (change["brier"]["low"], change["mean_confidence"]["high"]) == (-2.0, 1.0)


@pytest.mark.parametrize("target", [1e-300, 5e-324, 1e-7])
def test_a_target_that_no_data_could_show_is_refused_as_one(target) -> None:
    two = table("half", "random", 4), table("half", "random", 4)
    heldout = replace(two[1], ids=tuple(f"held-out {name}" for name in two[1].ids))
    with pytest.raises(ConfigError, match="target_ece must lie between 1e-06 and 1"):
        regime_test(two[0], heldout, target_ece=target)
    with pytest.raises(ConfigError, match="target_ece must lie between 1e-06 and 1"):
        required_examples(target)


@pytest.mark.parametrize("temperature", [0.01, 1e-6, 100.0])
def test_logits_that_are_masks_survive_any_temperature(temperature) -> None:
    least = float(np.finfo(np.float32).min)
    masked = Predictions.from_logits([[least, 1.0, 0.0], [least, least, 2.0], [3e38, -3e38, 0.0]], [1, 2, 0])
    scaled = apply_temperature(masked, temperature)
    assert scaled.top().tolist() == [1, 2, 0]
    assert scaled.probs()[0, 1] == pytest.approx(1 / (1 + math.exp(-1 / temperature)), rel=1e-6)
    assert one_temperature_apart(masked, masked)


def test_gaps_of_exactly_zero_leave_room_for_error() -> None:
    conf, correct = np.full(400, 0.5), np.arange(400) % 2.0
    limits = gap_sum_interval(bin_gaps(conf, correct))
    assert (limits.value, limits.low) == (0, 0)
    # The bin's mean has a standard error of 0.5 / 20 = 0.025, of which 400 questions can't exclude two.
    assert limits.high == pytest.approx(0.049, abs=0.01)


def test_errors_that_move_against_each_other_make_a_difference_less_sure() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.5, 800)
    one = (0.2 + noise)[:, None]
    same, opposite, apart = one, (0.2 - noise)[:, None], (0.2 + random.permutation(noise))[:, None]
    changes = [gap_sum_change(one, other) for other in (same, apart, opposite)]
    widths = [change.high - change.low for change in changes]
    # Of a difference: 0, sqrt(2) and 2 times the width of one, in that order.
    assert widths[0] < 0.1 * widths[1]
    assert widths[2] == pytest.approx(math.sqrt(2) * widths[1], rel=0.1)

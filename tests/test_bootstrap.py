"""Resampling is what it says, intervals hold the truth about as often as they claim, and they are quick."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.metrics import bootstrap, gaps
from calib_core.metrics.figures import adaptive_ece, classwise_ece, conf_ece, debiased_ece
from calib_core.metrics.interval import Interval

Floats = NDArray[np.float64]


def draw(rng: np.random.Generator, n: int, gap: float = 0.0) -> tuple[Floats, Floats]:
    """Confidences with mean 0.7, accuracy lower by `gap`."""
    conf = 0.25 + 0.75 * rng.beta(1.8, 1.2, n)
    return conf, (rng.random(n) < conf - gap).astype(np.float64)


def true_ece(gap: float) -> float:
    """Of `draw`'s model: accuracy is cut off at 0 nowhere, since conf >= 0.25 > gap."""
    return gap


def test_weights_are_resamples_of_all_rows() -> None:
    n, resamples = 50, 100_000
    chunks = list(bootstrap.resample_weights(n, n_resamples=resamples, seed=1))
    assert len(chunks) > 1
    weights = np.concatenate(chunks)
    assert weights.shape == (resamples, n)
    assert (weights.sum(axis=1) == n).all()
    # A multinomial count has mean 1, variance 1 - 1/n and covariance -1/n; 100,000 draws see them within
    # 0.02.
    covariance = np.cov(weights.T)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.02)
    np.testing.assert_allclose(np.diag(covariance), 1 - 1 / n, atol=0.03)
    np.testing.assert_allclose(covariance[~np.eye(n, dtype=bool)], -1 / n, atol=0.02)


def test_resampled_gaps_equal_a_plain_loop_over_rows() -> None:
    rng = np.random.default_rng(0)
    conf, correct = draw(rng, 30)
    shares = gaps.bin_gaps(conf, correct)
    (weights,) = bootstrap.resample_weights(30, n_resamples=20, seed=4)
    fast = np.abs(weights @ shares / 30).sum(axis=1)
    slow = [conf_ece(np.repeat(conf, w.astype(int)), np.repeat(correct, w.astype(int))) for w in weights]
    np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_class_gaps_add_up_to_the_class_wise_ece() -> None:
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(4), 40), rng.integers(0, 4, 40)
    shares = gaps.class_gaps(probs, labels)
    assert np.abs(shares.sum(axis=0) / 40).sum() == pytest.approx(classwise_ece(probs, labels), abs=1e-12)


def test_resamples_of_clusters_hold_whole_clusters() -> None:
    clusters = np.array([0, 0, 0, 1, 2, 2])
    (weights,) = bootstrap.resample_weights(6, clusters=clusters, n_resamples=500, seed=2)
    assert (weights[:, [0, 1, 4]] == weights[:, [1, 2, 5]]).all()
    assert (weights[:, [0, 3, 4]].sum(axis=1) == 3).all()
    with pytest.raises(DataFormatError, match=r"clusters \(6,\) must be \(5,\)"):
        next(bootstrap.resample_weights(5, clusters=clusters))


def test_gaps_of_equal_mass_add_up_to_the_equal_mass_ece_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    conf, correct = np.round(rng.random(50), 1), rng.integers(0, 2, 50)  # ties across the cuts
    order = rng.permutation(50)
    shares, other = (
        gaps.mass_gaps(conf, correct, n_bins=7),
        gaps.mass_gaps(conf[order], correct[order], n_bins=7),
    )
    np.testing.assert_allclose(shares.sum(axis=0), other.sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(shares.sum(axis=1), correct - conf, atol=1e-12)
    assert np.abs(shares.mean(axis=0)).sum() == pytest.approx(adaptive_ece(conf, correct, n_bins=7))


def test_questions_that_come_twice_count_once() -> None:
    """Each row doubled, and named as one: the limits are those of the rows once, and not narrower."""
    conf, correct = draw(np.random.default_rng(3), 300, 0.1)
    once = gaps.debiased_ece_interval(conf, correct, n_resamples=2000)
    twice = gaps.debiased_ece_interval(
        np.tile(conf, 2), np.tile(correct, 2), clusters=np.tile(np.arange(300), 2), n_resamples=2000
    )
    ignored = gaps.debiased_ece_interval(np.tile(conf, 2), np.tile(correct, 2), n_resamples=2000)
    assert twice.high == pytest.approx(once.high, abs=0.006)
    assert twice.low == pytest.approx(once.low, abs=0.006)
    assert ignored.high - ignored.low < 0.8 * (twice.high - twice.low)


def test_a_limit_for_which_resamples_are_too_few_lies_further_out() -> None:
    conf, correct = draw(np.random.default_rng(4), 500, 0.1)
    limits = [
        gaps.debiased_ece_interval(conf, correct, n_resamples=400, confidence=confidence)
        for confidence in (0.95, 0.98, 0.998, 0.9998)
    ]
    assert all(a.high < b.high and a.low > b.low for a, b in itertools.pairwise(limits))


def test_a_negative_correlation_widens_the_change() -> None:
    """Two models that are wrong on each other's right answers: their gaps move against each other."""
    rng = np.random.default_rng(5)
    right = rng.random(400) < 0.6
    before, after = (
        gaps.bin_gaps(np.full(400, conf), hits) for conf, hits in ((0.75, right), (0.45, ~right))
    )
    change = gaps.gap_sum_change(before, after, n_resamples=2000)
    # Both errors are |accuracy - confidence|, one from above and one from below: their noise adds up.
    se = np.sqrt(0.6 * 0.4 / 400)
    opposite = gaps.gap_sum_change(before, gaps.bin_gaps(np.full(400, 0.35), ~right), n_resamples=2000)
    widths = sorted(interval.high - interval.low for interval in (change, opposite))
    assert widths[1] == pytest.approx(2 * 1.96 * 2 * se, rel=0.15)


def test_the_same_seed_gives_the_same_interval_and_another_one_does_not() -> None:
    conf, correct = draw(np.random.default_rng(0), 200)
    intervals = [gaps.conf_ece_interval(conf, correct, n_resamples=200, seed=seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_intervals_become_dictionaries() -> None:
    assert Interval(0.5, 0.25, 0.75).to_dict() == {"value": 0.5, "low": 0.25, "high": 0.75}


def test_values_lie_inside_their_intervals() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 50, 500):
        conf, correct = draw(rng, n)
        plain = gaps.conf_ece_interval(conf, correct, n_resamples=200)
        debiased = gaps.debiased_ece_interval(conf, correct, n_resamples=200)
        assert plain.value == conf_ece(conf, correct)
        assert debiased.value == debiased_ece(conf, correct)
        for interval in (plain, debiased):
            assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_degenerate_tables() -> None:
    # One row says nothing about noise; rows that are all alike show none.
    assert gaps.conf_ece_interval([0.8], [1]) == Interval(pytest.approx(0.2), 0.0, 1.0)
    assert gaps.conf_ece_interval([1.0] * 9, [1] * 9, n_resamples=50) == Interval(0.0, 0.0, 0.0)
    alike = gaps.conf_ece_interval([0.7] * 9, [1] * 9, n_resamples=50)
    np.testing.assert_allclose([alike.value, alike.low, alike.high], 0.3, atol=1e-12)
    with pytest.raises(NotEnoughDataError):
        gaps.conf_ece_interval([], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gap", "n"), [(0.0, 300), (0.0, 1000), (0.03, 300), (0.03, 1000), (0.1, 300), (0.1, 1000)]
)
def test_limits_hold_the_true_ece_about_as_often_as_they_claim(gap: float, n: int) -> None:
    rng = np.random.default_rng(7)
    runs = 150
    limits = []
    for _ in range(runs):
        interval = gaps.debiased_ece_interval(*draw(rng, n, gap), n_resamples=300)
        limits.append((interval.low, interval.high))
    low, high = np.array(limits).T
    coverage = ((low <= true_ece(gap)) & (true_ece(gap) <= high)).mean()
    if gap == 0:
        assert (low == 0).mean() >= 0.9  # exactly: no rest of rounding
    # 95 % claimed; three standard errors of 150 runs are 5 points. A percentile bootstrap holds 0 in no run.
    assert coverage >= 0.89
    assert (high < true_ece(gap)).mean() <= 0.09


@pytest.mark.parametrize("confidences", [[0.32], [0.25, 0.32, 0.45]])
def test_an_ece_smaller_than_chance_makes_it_says_no_more_than_chance_allows(
    confidences: list[float],
) -> None:
    conf = np.repeat(confidences, 1200 // len(confidences))
    n = len(conf) // len(confidences)
    correct = np.concatenate([np.arange(n) < round(c * n) for c in confidences])
    interval = gaps.conf_ece_interval(conf, correct)
    assert interval.value < 1e-9
    assert interval.low == pytest.approx(0, abs=1e-9)
    # One standard error of the accuracy of 1,200 rows: that much can't be excluded, however exact the fit.
    assert 0.0135 < interval.high < 0.05


@pytest.mark.parametrize(("n", "limit"), [(300, 0.085), (1000, 0.046), (4000, 0.024)])
def test_upper_limit_of_a_calibrated_model_is_no_larger_than_its_noise(n: int, limit: float) -> None:
    rng = np.random.default_rng(8)
    uppers = [gaps.debiased_ece_interval(*draw(rng, n), n_resamples=200).high for _ in range(40)]
    assert 0.6 * limit < np.mean(uppers) < limit


def draw_pair(rng: np.random.Generator, n: int, before: float, after: float) -> list[Floats]:
    """Gaps of two models that share their confidences' ranks and most of their mistakes."""
    conf = 0.25 + 0.75 * rng.beta(1.8, 1.2, n)
    luck = rng.random(n)
    models = []
    for gap in (before, after):
        own = np.clip(conf + 0.03 * rng.normal(size=n), 0.25, 1)
        mine = np.where(rng.random(n) < 0.7, luck, rng.random(n))
        models.append(gaps.bin_gaps(own, mine < own - gap))
    return models


@pytest.mark.slow
def test_an_equal_ece_is_seldom_taken_for_a_fall_and_a_large_fall_always_seen() -> None:
    rng = np.random.default_rng(9)
    for gap in (0.0, 0.05):
        shown = [
            gaps.gap_sum_change(*draw_pair(rng, 500, gap, gap), n_resamples=200).high < 0 for _ in range(60)
        ]
        assert sum(shown) <= 4
    falls = [gaps.gap_sum_change(*draw_pair(rng, 500, 0.2, 0.02), n_resamples=200) for _ in range(50)]
    assert all(fall.high < 0 for fall in falls)
    assert np.mean([fall.low <= -0.18 <= fall.high for fall in falls]) >= 0.85


def test_a_change_is_the_negative_of_its_reverse() -> None:
    before, after = draw_pair(np.random.default_rng(1), 400, 0.1, 0.02)
    there, back = gaps.gap_sum_change(before, after), gaps.gap_sum_change(after, before)
    np.testing.assert_allclose(
        [there.value, there.low, there.high], [-back.value, -back.high, -back.low], atol=1e-12
    )
    same = gaps.gap_sum_change(before, before)
    assert same.value == 0
    assert same.low <= 0 <= same.high


def test_wrong_parameters_are_refused() -> None:
    conf, correct = draw(np.random.default_rng(0), 20)
    for confidence in (0, 1, 95, float("nan")):
        with pytest.raises(ConfigError, match="confidence must lie between 0 and 1"):
            gaps.conf_ece_interval(conf, correct, confidence=confidence)
    with pytest.raises(ConfigError, match="n_resamples must be at least 1, received 0"):
        gaps.conf_ece_interval(conf, correct, n_resamples=0)
    with pytest.raises(DataFormatError, match="20 rows before and 19 after"):
        gaps.gap_sum_change(gaps.bin_gaps(conf, correct), gaps.bin_gaps(conf[1:], correct[1:]))


def test_a_thousand_resamples_of_four_thousand_rows_take_well_under_a_second() -> None:
    conf, correct = draw(np.random.default_rng(0), 4000)
    started_s = time.process_time()
    gaps.conf_ece_interval(conf, correct, n_resamples=1000)
    assert (
        time.process_time() - started_s < 1.0
    )  # 0.2 s on one core; a loop over resamples takes 10 times that

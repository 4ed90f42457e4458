"""Figures are what their definitions say, on numbers worked by hand and on whatever hypothesis finds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.metrics import figures as metrics
from calib_core.metrics.binning import bin_index, folded_normal_mean
from calib_core.predictions.table import Predictions

CONF = [0.52, 0.61, 0.70, 0.79, 0.83, 0.88, 0.93, 0.99]
CORRECT = [1, 0, 1, 1, 0, 1, 1, 1]
ON_CONF = (
    metrics.conf_ece,
    metrics.adaptive_ece,
    metrics.debiased_ece,
    metrics.smooth_ece,
    metrics.mce,
    metrics.auroc,
    metrics.risk_coverage,
    metrics.reliability_bins,
)
ON_PROBS = (metrics.classwise_ece, metrics.brier, metrics.nll_nats)


@st.composite
def tables(draw: st.DrawFn, max_size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, many of them on bin edges or equal, and outcomes."""
    n = draw(st.integers(1, max_size))
    value = st.one_of(st.floats(0, 1), st.sampled_from([i / 20 for i in range(21)]))
    conf = np.array(draw(st.lists(value, min_size=n, max_size=n)))
    return conf, draw(hnp.arrays(np.int64, n, elements=st.integers(0, 1)))


def random_predictions(n: int = 60, seed: int = 0, subjects: tuple[Any, ...] | None = None) -> Predictions:
    rng = np.random.default_rng(seed)
    n_options = rng.integers(2, 6, n)
    logits = np.where(np.arange(5) < n_options[:, None], rng.normal(size=(n, 5)), -np.inf)
    return Predictions(
        ids=tuple(f"q{i}" for i in range(n)),
        labels=rng.integers(0, n_options),
        logits=logits.astype(np.float32),
        n_options=n_options,
        letter_mass=np.full(n, 0.5, np.float32),
        subjects=subjects or (None,) * n,
    )


def test_conf_ece_by_hand() -> None:
    assert metrics.conf_ece([0.5, 0.5, 0.5, 0.9, 1], [0, 1, 0, 1, 1], n_bins=2) == pytest.approx(
        0.08, abs=1e-12
    )
    assert metrics.conf_ece([0.95, 0.95, 1, 1], [1, 1, 0, 1]) == pytest.approx(0.225, abs=1e-12)
    assert metrics.conf_ece(CONF, CORRECT, n_bins=4) == pytest.approx(0.07375, abs=1e-12)
    assert metrics.adaptive_ece(CONF, CORRECT, n_bins=4) == pytest.approx(0.17875, abs=1e-12)


def test_bins_are_left_closed_and_the_last_one_is_closed() -> None:
    edges = np.linspace(0, 1, 11)
    assert bin_index(edges, 10).tolist() == [*range(10), 9]
    assert bin_index(np.nextafter(edges[1:], 0), 10).tolist() == list(range(10))


def test_classwise_ece_by_hand() -> None:
    # class 0: p .8 (y=0), .6 (not) -> gaps .2 and -.6; class 1 mirrors it; class 2 is an option no row has
    probs, labels = [[0.8, 0.2, 0], [0.6, 0.4, 0]], [0, 1]
    assert metrics.classwise_ece(probs, labels) == pytest.approx((0.8 + 0.8) / 2 / 3, abs=1e-12)


def test_mce_brier_nll_by_hand() -> None:
    assert metrics.mce([0.95, 0.95, 0.3], [1, 0, 0]) == pytest.approx(0.45, abs=1e-12)
    probs, labels = [[0.5, 0.5], [0.9, 0.1]], [0, 1]
    assert metrics.brier(probs, labels) == pytest.approx((0.5 + 1.62) / 2, abs=1e-12)
    assert metrics.nll_nats(probs, labels) == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2, abs=1e-12)
    assert metrics.nll_nats([[1.0, 0.0]], [1]) == np.inf


def test_adaptive_ece_shares_a_level_that_a_cut_divides() -> None:
    # four rows of one confidence in two bins: each bin gets half of the outcomes, in whatever order they come
    for correct in ([1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1]):
        assert metrics.adaptive_ece([0.7] * 4, correct, n_bins=2) == pytest.approx(0.2, abs=1e-12)


def test_debiased_ece_agrees_with_kumars_monte_carlo() -> None:
    rng = np.random.default_rng(3)
    conf = rng.uniform(0.25, 1, 500)
    correct = (rng.random(500) < conf - 0.08).astype(float)
    index = bin_index(conf, 10)
    counts = np.bincount(index, minlength=10)
    used = counts > 0
    share, n = counts[used] / 500, counts[used]
    accuracy = np.bincount(index, correct, 10)[used] / n
    mean_conf = np.bincount(index, conf, 10)[used] / n
    drawn = rng.normal(accuracy, np.sqrt(accuracy * (1 - accuracy) / n), (400_000, len(n)))
    plug_in = metrics.conf_ece(conf, correct)
    bias = (np.abs(drawn - mean_conf) @ share).mean() - plug_in
    assert bias > 0.004  # else the test would pass without any debiasing
    assert metrics.debiased_ece(conf, correct) == pytest.approx(plug_in - bias, abs=1e-4)


def test_debiasing_takes_most_of_the_bias_away() -> None:
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(400):
        conf = 0.25 + 0.75 * rng.beta(1.8, 1.2, 300)
        correct = rng.random(300) < conf - 0.05
        plain.append(metrics.conf_ece(conf, correct))
        debiased.append(metrics.debiased_ece(conf, correct))
    assert np.mean(plain) - 0.05 > 0.012
    assert abs(np.mean(debiased) - 0.05) < 0.005


def test_folded_normal_mean_is_the_integral() -> None:
    z = np.linspace(-12, 12, 400_001)
    for mean, sd in ((0.0, 1.0), (0.3, 0.2), (-0.5, 0.05), (2.0, 3.0)):
        expected = float((np.abs(mean + sd * z) * norm.pdf(z)).sum() * (z[1] - z[0]))
        assert float(folded_normal_mean(np.array(mean), np.array(sd))) == pytest.approx(expected, abs=1e-8)
    assert float(folded_normal_mean(np.array(-0.3), np.array(0.0))) == 0.3


def test_smooth_ece_is_the_fixed_point_of_its_definition() -> None:
    conf, residuals = np.array(CONF), (np.array(CORRECT) - np.array(CONF)) / len(CONF)
    sigma = metrics.smooth_ece(CONF, CORRECT)
    t = (np.arange(20_000) + 0.5) / 20_000
    smoothed = np.zeros_like(t)
    for image in range(-3, 4):  # the kernel's mirror images
        for centre in (2 * image + conf, 2 * image - conf):
            smoothed += norm.pdf(t[:, None], centre, sigma) @ residuals
    assert np.abs(smoothed).mean() == pytest.approx(sigma, abs=1e-5)


def test_smooth_ece_at_the_ends() -> None:
    assert metrics.smooth_ece([1.0, 1.0], [1, 1]) == 0
    assert metrics.smooth_ece([1.0, 1.0], [0, 0]) == pytest.approx(1, abs=1e-6)
    assert metrics.smooth_ece([0.0, 0.0], [1, 1]) == pytest.approx(1, abs=1e-6)


def test_auroc_counts_ties_half() -> None:
    assert metrics.auroc([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0]) == pytest.approx(3.5 / 4, abs=1e-12)
    with pytest.raises(NotEnoughDataError, match="2 right and 0 wrong"):
        metrics.auroc([0.5, 0.6], [1, 1])


def test_risk_coverage_by_hand() -> None:
    curve = metrics.risk_coverage([0.6, 0.9, 0.8, 0.8], [0, 1, 1, 0])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.6]
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 3, 0.5])
    assert curve.aurc == pytest.approx((0 + 0.5 / 2 + 1 / 3 + 0.5) / 4, abs=1e-12)


def test_threshold_at_risk_takes_the_largest_coverage() -> None:
    point = metrics.threshold_at_risk([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1], target_risk=0.3)
    assert point is not None
    assert (point.threshold, point.coverage, point.risk) == (
        0.6,
        1.0,
        0.25,
    )  # though 0.8 alone exceeds the risk
    assert point.risk_high == pytest.approx(metrics.wilson(0.25, 4)[1])
    assert metrics.threshold_at_risk([0.9, 0.8], [0, 0], target_risk=0.5) is None
    with pytest.raises(ConfigError, match=r"target_risk.*1\.5"):
        metrics.threshold_at_risk([0.9], [1], target_risk=1.5)


def test_wilson_interval_of_published_example() -> None:
    low, high = metrics.wilson(0.5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert metrics.wilson(0.0, 5)[0] == 0
    assert metrics.wilson(1.0, 5)[1] == 1


def test_reliability_bins_add_up_to_the_ece() -> None:
    bars = metrics.reliability_bins(CONF, CORRECT, n_bins=4)
    assert [bar.count for bar in bars] == [0, 0, 3, 5]
    assert bars[0].accuracy is None
    assert bars[0].accuracy_low is None
    gaps = [bar.count * abs(bar.accuracy - bar.mean_confidence) for bar in bars if bar.count]  # type: ignore[operator]
    assert sum(gaps) / 8 == pytest.approx(0.07375, abs=1e-12)
    for bar in bars[2:]:
        assert bar.accuracy_low < bar.accuracy < bar.accuracy_high  # type: ignore[operator]
    json.dumps([bar.to_dict() for bar in bars], allow_nan=False)


@settings(deadline=None)
@given(tables(), st.integers(1, 25), st.randoms(use_true_random=False))
def test_figures_lie_in_their_range_and_ignore_order(table: Any, n_bins: int, random: Any) -> None:
    conf, correct = table
    order = list(range(len(conf)))
    random.shuffle(order)
    for metric in (metrics.conf_ece, metrics.adaptive_ece, metrics.debiased_ece, metrics.mce):
        value = metric(conf, correct, n_bins=n_bins)
        assert 0 <= value <= 1
        assert metric(conf[order], correct[order], n_bins=n_bins) == pytest.approx(value, abs=1e-12)
    smooth, aurc = metrics.smooth_ece(conf, correct), metrics.risk_coverage(conf, correct).aurc
    assert 0 <= smooth <= 1
    assert 0 <= aurc <= 1
    assert metrics.smooth_ece(conf[order], correct[order]) == pytest.approx(smooth, abs=1e-6)
    assert metrics.risk_coverage(conf[order], correct[order]).aurc == pytest.approx(aurc, abs=1e-12)


@settings(deadline=None)
@given(tables(), st.integers(1, 12), st.integers(2, 4))
def test_ece_is_at_least_the_overall_gap_and_falls_when_bins_merge(
    table: Any, n_bins: int, factor: int
) -> None:
    conf, correct = table
    coarse = metrics.conf_ece(conf, correct, n_bins=n_bins)
    # edges of the fine bins include those of the coarse ones only up to rounding: keep clear of them
    fine_edges = np.linspace(0, 1, n_bins * factor + 1)
    if np.abs(conf[:, None] - fine_edges).min() > 1e-9:
        assert metrics.conf_ece(conf, correct, n_bins=n_bins * factor) >= coarse - 1e-12
    gap = abs(correct.mean() - conf.mean())
    assert coarse >= gap - 1e-12
    assert metrics.adaptive_ece(conf, correct, n_bins=n_bins) >= gap - 1e-12
    assert metrics.mce(conf, correct, n_bins=n_bins) >= coarse - 1e-12


@settings(deadline=None)
@given(tables())
def test_one_bin_is_the_overall_gap(table: Any) -> None:
    conf, correct = table
    assert metrics.conf_ece(conf, correct, n_bins=1) == pytest.approx(
        abs(correct.mean() - conf.mean()), abs=1e-12
    )


def test_two_options_make_class_wise_and_confidence_ece_the_same_on_symmetric_bins() -> None:
    conf = np.array([0.55, 0.65, 0.92])
    labels = np.array([0, 1, 0])
    probs = np.column_stack([conf, 1 - conf])
    assert metrics.classwise_ece(probs, labels) == pytest.approx(
        metrics.conf_ece(conf, labels == 0), abs=1e-12
    )


@pytest.mark.parametrize("metric", ON_CONF, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("conf", "correct", "error", "message"),
    [
        ([2.3, -1.0], [1, 0], DataFormatError, "are these logits"),
        ([0.5, np.nan], [1, 0], DataFormatError, "found nan in row 2"),
        ([0.5, 1.0000001], [1, 0], DataFormatError, r"\[0, 1\]"),
        ([0.5, 0.6], [1, 2], DataFormatError, "correct must be 0 or 1, found 2.0 in row 2"),
        ([0.5, 0.6], [1, 0.5], DataFormatError, "correct must be 0 or 1"),
        ([0.5, 0.6], [1], DataFormatError, r"\(2,\) and correct \(1,\)"),
        ([[0.5, 0.5]], [[1, 0]], DataFormatError, "must both be"),
        (["a", "b"], [1, 0], DataFormatError, "conf must be numbers"),
        ([], [], NotEnoughDataError, "at least one labelled row"),
    ],
)
def test_wrong_confidences_are_refused(
    metric: Any, conf: Any, correct: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        metric(conf, correct)


@pytest.mark.parametrize("metric", ON_PROBS, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("probs", "labels", "error", "message"),
    [
        ([[2.0, 1.0]], [0], DataFormatError, "are these logits"),
        ([[0.9, 0.9]], [0], DataFormatError, "row 1 sums to 1.8"),
        ([[0.5, np.nan]], [0], DataFormatError, "found nan"),
        ([[0.5, 0.5]], [2], DataFormatError, r"0\.\.1, found 2 in row 1"),
        ([[0.5, 0.5]], [-1], DataFormatError, "leave out rows without a label"),
        ([[0.5, 0.5]], [0.0], DataFormatError, "labels must be integers"),
        ([0.5, 0.5], [0, 1], DataFormatError, "must be"),
        ([[0.5, 0.5]], [0, 1], DataFormatError, "must be"),
        (np.zeros((0, 2)), np.zeros(0, int), NotEnoughDataError, "at least one labelled row"),
    ],
)
def test_wrong_probabilities_are_refused(
    metric: Any, probs: Any, labels: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        metric(probs, labels)


@pytest.mark.parametrize("n_bins", [0, -1, 2.5, True])
def test_wrong_numbers_of_bins_are_refused(n_bins: Any) -> None:
    for metric in (metrics.conf_ece, metrics.adaptive_ece, metrics.debiased_ece, metrics.mce):
        with pytest.raises(ConfigError, match="n_bins must be a positive integer"):
            metric(CONF, CORRECT, n_bins=n_bins)


def test_per_subject_rows() -> None:
    subjects = ("b",) * 20 + (None,) * 10 + ("a",) * 30
    table = random_predictions(subjects=subjects)
    rows = metrics.per_subject(table, n_resamples=50)
    assert [(row["subject"], row["n"]) for row in rows] == [("a", 30), ("b", 20), (None, 10)]
    assert rows[1]["conf_ece"]["value"] == metrics.conf_ece(table.confidence()[:20], table.correct()[:20])
    assert rows[1]["accuracy"] == table.correct()[:20].mean()
    assert metrics.per_subject(random_predictions()) == []

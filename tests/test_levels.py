"""The E-step: each estimator by hand, and the choice among them where the truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, logit

from calib_core.decisions.levels import (
    ESTIMATORS,
    ConfidenceTargets,
    beta_calibration,
    equal_mass_bins,
    equal_width_bins,
    estimate_bin_targets,
    log_odds,
)
from calib_core.errors import DataFormatError, NotEnoughDataError

confidences = st.sampled_from([0.0, 1.0, 0.5, 1 / 3, np.nextafter(1.0, 0.0), 1e-300]) | st.floats(0, 1)


def hits(*bins):
    """Outcomes of bins, each (right, wrong)."""
    return np.concatenate([np.repeat([1.0, 0.0], bin_) for bin_ in bins])


def test_bins_are_shrunk_by_a_beta_prior_at_the_overall_accuracy():
    conf = np.repeat([0.25, 0.75], [10, 30])
    targets = equal_width_bins(conf, hits((2, 8), (24, 6)))
    overall = 26 / 40
    np.testing.assert_allclose(
        targets.confidence_for([0.25, 0.75]),
        [(2 + 5 * overall) / 15, (24 + 5 * overall) / 35],
        rtol=0,
        atol=1e-15,
    )


def test_bins_of_equal_width_are_closed_on_the_left():
    targets = equal_width_bins(np.repeat([0.35, 0.45], 1000), hits((0, 1000), (1000, 0)))
    below, at = targets.confidence_for([np.nextafter(0.4, 0), 0.4])
    assert below == targets.confidence_for([0.35])[0] < 0.01
    assert at == targets.confidence_for([0.45])[0] > 0.99


def test_a_fall_between_bins_is_ironed_out_weighted_by_examples():
    conf = np.repeat([0.15, 0.55, 0.95], [10_000, 30_000, 10_000])
    targets = equal_width_bins(conf, hits((0, 10_000), (24_000, 6_000), (4_000, 6_000)))
    # (24 + 4) / 40; the prior is small beside so many examples
    np.testing.assert_allclose(targets.confidence_for([0.15, 0.55, 0.95]), [0, 0.7, 0.7], rtol=0, atol=1e-3)


def test_empty_bins_lie_on_the_line_between_their_neighbours_and_flat_beyond():
    conf = np.repeat([0.25, 0.65], 10)
    low, high = (2 + 2.5) / 15, (8 + 2.5) / 15
    targets = equal_width_bins(conf, hits((2, 8), (8, 2)))
    steps = [low, low, low, *(low + (high - low) * k / 4 for k in (1, 2, 3)), high, high, high, high]
    np.testing.assert_allclose(targets.confidence_for(np.arange(10) / 10 + 0.05), steps, rtol=0, atol=1e-12)


def test_bins_of_equal_mass_are_joined_by_lines_in_log_odds():
    conf = np.repeat([0.5, 0.9, 0.99], [400, 300, 300])
    targets = equal_mass_bins(conf, hits((100, 300), (150, 150), (240, 60)))
    overall = 490 / 1000
    at = [(n + 5 * overall) / (m + 5) for n, m in ((100, 400), (150, 300), (240, 300))]
    np.testing.assert_allclose(targets.confidence_for([0.5, 0.9, 0.99]), at, rtol=0, atol=1e-12)
    between = expit((logit(0.9) + logit(0.99)) / 2)
    np.testing.assert_allclose(
        targets.confidence_for([0.1, between, 1.0]), [at[0], (at[1] + at[2]) / 2, at[2]], rtol=0, atol=1e-12
    )


def test_beta_calibration_finds_the_curve_that_it_is_a_model_of():
    rng = np.random.default_rng(0)
    conf = rng.uniform(0.3, 0.999, 60_000)
    true = expit(-0.5 + 1.2 * np.log(conf) - 0.3 * np.log1p(-conf))
    targets = beta_calibration(conf, (rng.random(len(conf)) < true).astype(float))
    np.testing.assert_allclose(targets.confidence_for(conf), true, rtol=0, atol=0.015)


def test_beta_calibration_stays_flat_where_accuracy_falls():
    rng = np.random.default_rng(0)
    conf = rng.uniform(0.3, 0.9, 4000)
    correct = (rng.random(4000) < 1 - conf).astype(float)
    targets = beta_calibration(conf, correct)
    np.testing.assert_allclose(targets.accuracy, correct.mean(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("fit", [estimate_bin_targets, *ESTIMATORS.values()])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_targets_never_fall_with_confidence_and_stay_in_range(fit, data):
    n = data.draw(st.integers(1, 60))
    conf = data.draw(hnp.arrays(np.float64, n, elements=confidences))
    correct = data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0])))
    targets = fit(conf, correct)
    assert (np.diff(targets.log_odds) >= 0).all()
    assert (np.diff(targets.accuracy) >= 0).all()
    assert ((targets.accuracy >= 0) & (targets.accuracy <= 1)).all()
    assert np.isfinite(targets.confidence_for([0.0, 0.5, 1.0])).all()
    again = ConfidenceTargets.from_dict(json.loads(json.dumps(targets.to_dict())))
    assert again.estimator == targets.estimator
    for name in ("log_odds", "accuracy"):
        np.testing.assert_array_equal(getattr(again, name), getattr(targets, name))
        assert getattr(again, name).dtype == np.float64


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_examples_changes_no_choice(seed):
    rng = np.random.default_rng(seed)
    conf = rng.choice([0.3, 0.5, 0.8, 0.95, 1.0], 80)
    correct = (rng.random(80) < conf - 0.2).astype(float)
    mixed = rng.permutation(80)
    one, other = (estimate_bin_targets(conf[order], correct[order]) for order in (np.arange(80), mixed))
    assert one.estimator == other.estimator
    np.testing.assert_allclose(one.confidence_for(conf), other.confidence_for(conf), rtol=0, atol=1e-6)


def collapsed(rng, n):
    """Nearly all confidence above 0.9, where accuracy goes from 0.3 to 0.95 all the same."""
    z = rng.normal(size=n)
    return 0.25 + 0.75 * expit(5 + 2 * z), 0.25 + 0.7 * expit(0.2 + 1.3 * z)


def a_step(rng, n):
    """Right four times in ten, but 17 times in 20 above 0.7."""
    conf = rng.uniform(0.25, 1.0, n)
    return conf, np.where(conf > 0.7, 0.85, 0.4)


def too_sure(rng, n):
    """Too sure by 0.2 everywhere."""
    conf = rng.uniform(0.5, 1.0, n)
    return conf, conf - 0.2


@pytest.mark.parametrize(("world", "bound"), [(collapsed, 0.035), (a_step, 0.035), (too_sure, 0.04)])
def test_the_true_accuracy_is_found_with_400_questions(world, bound):
    """Mean error over 20 worlds; bins of equal width miss the first by 0.13, beta the second by 0.1."""
    rng = np.random.default_rng(0)
    conf_everywhere, accuracy = world(rng, 5000)
    errors = []
    for _ in range(20):
        conf, true = world(rng, 400)
        targets = estimate_bin_targets(conf, rng.random(400) < true)
        errors.append(np.abs(targets.confidence_for(conf_everywhere) - accuracy).mean())
    assert np.mean(errors) < bound


def test_a_few_examples_are_drawn_towards_the_overall_accuracy():
    # Two examples in each bin and five of the prior at 3/4: (1 + 15/4) / 7 and (2 + 15/4) / 7.
    targets = estimate_bin_targets([0.2, 0.22, 0.82, 0.84], [0, 1, 1, 1])
    np.testing.assert_allclose(targets.confidence_for([0.2, 0.84]), [19 / 28, 23 / 28], rtol=0, atol=1e-12)


def test_sure_and_impossible_confidences_have_finite_log_odds():
    assert log_odds(np.array([0.0, 0.5, 1.0])).tolist() == pytest.approx([-20.723, 0.0, 20.723], abs=1e-3)


def test_no_examples_give_no_targets():
    with pytest.raises(NotEnoughDataError):
        estimate_bin_targets([], [])


@pytest.mark.parametrize(
    "value",
    [
        {"log_odds": [0, 1], "accuracy": [0.5, 0.6]},
        {"log_odds": [0, 1], "accuracy": [0.5], "estimator": "beta"},
        {"log_odds": [], "accuracy": [], "estimator": "beta"},
        {"log_odds": [0], "accuracy": ["half"], "estimator": "beta"},
    ],
)
def test_broken_targets_are_refused(value):
    with pytest.raises(DataFormatError, match="target confidences"):
        ConfidenceTargets.from_dict(value)


def test_confidences_out_of_range_have_no_target():
    with pytest.raises(DataFormatError, match=r"row 1 holds 1\.2"):
        estimate_bin_targets([0.5], [1]).confidence_for([0.5, 1.2])

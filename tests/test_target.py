"""The EM target: the authors' map where it holds, its mends where it breaks, and the E-step."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calib_core.decisions.target import BinTargets, em_target, estimate_bin_targets, rank_preserving_target
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError

SUM = 1e-12


@st.composite
def distributions(draw):
    """Ragged option distributions with what breaks formulas: zeros, ties, tiny and sure ones."""
    n, k = draw(st.integers(1, 8)), draw(st.integers(2, 26))
    n_options = draw(hnp.arrays(np.int64, n, elements=st.integers(2, k)))
    pieces = st.sampled_from([0.0, 5e-324, 1e-300, 1e-12, 0.25, 1.0, 3.0]) | st.floats(0, 1)
    weights = draw(hnp.arrays(np.float64, (n, k), elements=pieces))
    weights[np.arange(k) >= n_options[:, None]] = 0.0
    weights[weights.max(axis=1) < 1e-6, 0] = 1.0
    return weights / weights.sum(axis=1, keepdims=True), n_options


confidences = st.sampled_from([0.0, 1.0, 0.5, 1 / 3, np.nextafter(1.0, 0.0), 1e-300]) | st.floats(0, 1)


def by_the_formula(p, top_conf):
    """The map as written for one row: method of Xiao et al. 2025, K options, no mends."""
    top = max(range(len(p)), key=lambda j: p[j])
    second = max(p[j] for j in range(len(p)) if j != top)
    gamma = math.log(3) / (second * (1 - top_conf))
    shares = [math.tanh(gamma * p[j]) for j in range(len(p)) if j != top]
    alpha = (1 - top_conf) / (len(p) - 1 + sum(shares))
    return [top_conf if j == top else alpha * (math.tanh(gamma * p[j]) + 1) for j in range(len(p))]


@pytest.mark.parametrize("top_conf", [0.45, 0.7, 0.99])
@pytest.mark.parametrize(
    "p", [[0.9, 0.06, 0.03, 0.01], [0.2, 0.5, 0.3], [0.4, 0.6], [0.1, 0.1, 0.1, 0.1, 0.6]]
)
def test_the_authors_map_for_any_number_of_options(p, top_conf):
    if len(p) == 2:
        top_conf = max(top_conf, 0.5)
    got = rank_preserving_target([p], [top_conf])
    np.testing.assert_allclose(got[0], by_the_formula(p, top_conf), rtol=0, atol=1e-12)


def test_four_options_by_hand():
    # gamma p = ln 3 / 0.4 * (1, 1/2): tanh = (3^5 - 1) / (3^5 + 1) = 121/122 and (3^2.5 - 1) / (3^2.5 + 1)
    half = (3**2.5 - 1) / (3**2.5 + 1)
    alpha = 0.4 / (3 + 121 / 122 + half)
    want = [0.6, alpha * (1 + 121 / 122), alpha * (1 + half), alpha]
    got = rank_preserving_target([[0.7, 0.2, 0.1, 0.0]], [0.6])
    np.testing.assert_allclose(got, [want], rtol=0, atol=1e-12)


@given(distributions(), st.data())
@settings(max_examples=150, deadline=None)
def test_sums_to_one_keeps_order_and_leaves_the_top_on_top(case, data):
    p, n_options = case
    top_conf = data.draw(hnp.arrays(np.float64, len(p), elements=confidences))
    target = rank_preserving_target(p, top_conf, n_options=n_options)
    assert target.shape == p.shape
    assert target.dtype == np.float64
    assert (target >= 0).all()
    np.testing.assert_allclose(target.sum(axis=1), 1.0, rtol=0, atol=SUM)
    absent = np.arange(p.shape[1]) >= n_options[:, None]
    assert (target[absent] == 0).all()
    top = p.argmax(axis=1)
    for row, t in enumerate(target):
        k = n_options[row]
        assert t[top[row]] == top_conf[row]
        if top_conf[row] >= 1 / k:
            assert t.max() == t[top[row]]
        others = [j for j in range(k) if j != top[row]]
        ordered = sorted(others, key=lambda j: p[row, j])
        assert all(t[a] <= t[b] + 1e-15 for a, b in itertools.pairwise(ordered))


@given(distributions(), st.data())
@settings(max_examples=100, deadline=None)
def test_columns_beyond_a_rows_options_change_nothing(case, data):
    p, n_options = case
    top_conf = data.draw(hnp.arrays(np.float64, len(p), elements=confidences))
    together = rank_preserving_target(p, top_conf, n_options=n_options)
    for row, k in enumerate(n_options):
        alone = rank_preserving_target(p[row : row + 1, :k], top_conf[row : row + 1])
        np.testing.assert_allclose(together[row, :k], alone[0], rtol=0, atol=1e-15)


def test_the_largest_other_share_is_held_at_the_top_confidence():
    # the formula alone gives the second option 0.36 of the 0.75 that are left, more than the top's 0.25
    assert max(by_the_formula([0.6, 0.4, 1e-9, 1e-9], 0.25)) > 0.35
    np.testing.assert_allclose(
        rank_preserving_target([[0.6, 0.4, 0.0, 0.0]], [0.25]), [[0.25] * 4], rtol=0, atol=1e-15
    )
    mended = rank_preserving_target([[0.6, 0.4, 0.0, 0.0]], [0.3])[0]
    assert mended[:2].tolist() == [0.3, 0.3]
    assert mended[2] == pytest.approx(0.2, abs=1e-15)


def test_options_without_any_probability_share_the_rest_evenly():
    target = rank_preserving_target([[1.0, 0.0, 0.0, 0.0]], [0.4])
    np.testing.assert_allclose(target, [[0.4, 0.2, 0.2, 0.2]], rtol=0, atol=1e-15)


def test_full_confidence_leaves_nothing_for_the_others():
    assert rank_preserving_target([[0.5, 0.3, 0.2]], [1.0]).tolist() == [[1.0, 0.0, 0.0]]


def test_the_first_of_tied_options_is_the_top():
    assert rank_preserving_target([[0.2, 0.4, 0.4]], [0.8])[0].argmax() == 1


@pytest.mark.parametrize(
    ("probs", "top_conf", "n_options", "message"),
    [
        ([[2.0, 1.0]], [0.5], None, "row 0 .* is no distribution"),
        ([[0.5, 0.5], [np.nan, 1.0]], [0.5, 0.5], None, "row 1 .* is no distribution"),
        ([[0.5, 0.4, 0.1]], [0.5], [2], "is no distribution over its 2 options"),
        ([[0.5, 0.5]], [1.5], None, "top_conf: row 0 holds 1.5"),
        ([[0.5, 0.5]], [0.5, 0.5], None, "top_conf: expected 1 values"),
        ([[1.0]], [0.5], None, "K >= 2"),
        ([[1.0, 0.0]], [0.5], [1], "n_options: row 0 has 1"),
        ([[1.0, 0.0]], [0.5], [2.0], "n_options: expected 1 integers"),
    ],
)
def test_what_is_no_distribution_is_refused(probs, top_conf, n_options, message):
    with pytest.raises(DataFormatError, match=message):
        rank_preserving_target(probs, top_conf, n_options=n_options)


def test_bins_are_shrunk_by_a_beta_prior_at_the_overall_accuracy():
    conf = np.repeat([0.25, 0.75], [10, 30])
    correct = np.concatenate([np.repeat([1, 0], [2, 8]), np.repeat([1, 0], [24, 6])])
    targets = estimate_bin_targets(conf, correct, n_bins=2, prior_strength=4)
    overall = 26 / 40
    np.testing.assert_allclose(
        targets.accuracy, [(2 + 4 * overall) / 14, (24 + 4 * overall) / 34], rtol=0, atol=1e-15
    )
    assert targets.counts.tolist() == [10, 30]
    assert targets.edges.tolist() == [0.0, 0.5, 1.0]


def test_a_fall_between_bins_is_ironed_out_weighted_by_examples():
    conf = np.repeat([0.1, 0.5, 0.9], [10, 30, 10])
    correct = np.concatenate([np.zeros(10), np.repeat([1, 0], [24, 6]), np.repeat([1, 0], [4, 6])])
    targets = estimate_bin_targets(conf, correct, n_bins=3, prior_strength=0)
    np.testing.assert_allclose(targets.accuracy, [0.0, 0.7, 0.7], rtol=0, atol=1e-15)  # (24 + 4) / 40


def test_empty_bins_lie_on_the_line_between_their_neighbours_and_flat_beyond():
    conf = np.repeat([0.25, 0.65], 10)
    correct = np.concatenate([np.repeat([1, 0], [2, 8]), np.repeat([1, 0], [8, 2])])
    targets = estimate_bin_targets(conf, correct, prior_strength=0)
    want = [0.2, 0.2, 0.2, 0.35, 0.5, 0.65, 0.8, 0.8, 0.8, 0.8]
    np.testing.assert_allclose(targets.accuracy, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        targets.confidence_for([0.0, 0.299, 0.31, 0.55, 1.0]), [0.2, 0.2, 0.35, 0.65, 0.8], rtol=0, atol=1e-12
    )


def test_the_floor_is_the_lower_limit_of_every_bin():
    targets = estimate_bin_targets([0.3, 0.9], [0, 1], prior_strength=0, floor=0.25)
    assert targets.accuracy.min() == 0.25
    assert targets.accuracy.max() == 1.0


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_targets_never_fall_with_confidence_and_stay_in_range(data):
    n = data.draw(st.integers(1, 60))
    conf = data.draw(hnp.arrays(np.float64, n, elements=confidences))
    correct = data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0])))
    targets = estimate_bin_targets(
        conf,
        correct,
        n_bins=data.draw(st.integers(1, 20)),
        prior_strength=data.draw(st.sampled_from([0.0, 5.0])),
    )
    assert (np.diff(targets.accuracy) >= 0).all()
    assert ((targets.accuracy >= 0) & (targets.accuracy <= 1)).all()
    assert targets.counts.sum() == n
    again = BinTargets.from_dict(json.loads(json.dumps(targets.to_dict())))
    for name in ("edges", "accuracy", "counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(targets, name))
        assert getattr(again, name).dtype == getattr(targets, name).dtype


@given(distributions())
@settings(max_examples=100, deadline=None)
def test_the_em_target_keeps_the_top_option_and_each_rows_own_floor(case):
    p, n_options = case
    never_right = estimate_bin_targets([0.1, 0.9], [0, 0])
    target = em_target(p, never_right, n_options)
    top = p.argmax(axis=1)
    # a target accuracy of 0 becomes a plain guess over the row's own options
    want = np.where(np.arange(p.shape[1]) < n_options[:, None], 1 / n_options[:, None], 0.0)
    np.testing.assert_allclose(target, want, rtol=0, atol=1e-12)
    half_right = estimate_bin_targets([0.1, 0.9], [0, 1], n_bins=1)
    target = em_target(p, half_right, n_options)
    np.testing.assert_allclose(target[np.arange(len(p)), top], 0.5, rtol=0, atol=1e-15)


def test_a_float32_softmax_is_accepted():
    logits = np.random.default_rng(0).normal(scale=5, size=(200, 26)).astype(np.float32)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert p.dtype == np.float32
    target = em_target(p, estimate_bin_targets([0.2, 0.9], [0, 1]))
    np.testing.assert_allclose(target.sum(axis=1), 1.0, rtol=0, atol=SUM)


def test_target_calibration_of_a_sharpened_model_is_recovered():
    """A model that says c where it is right c - 0.2 of the time is given c - 0.2 back, within half a bin."""
    rng = np.random.default_rng(0)
    conf = rng.uniform(0.5, 1.0, 20_000)
    correct = rng.random(20_000) < conf - 0.2
    targets = estimate_bin_targets(conf, correct)
    np.testing.assert_allclose(targets.confidence_for(conf), conf - 0.2, rtol=0, atol=0.05 + 0.025)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"prior_strength": -1.0}, "-1.0"), ({"floor": 1.5}, "1.5"), ({"n_bins": 0}, "0")],
)
def test_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        estimate_bin_targets([0.5], [1], **options)


def test_no_examples_give_no_targets():
    with pytest.raises(NotEnoughDataError):
        estimate_bin_targets([], [])


@pytest.mark.parametrize(
    "value",
    [
        {"edges": [0, 1], "accuracy": [0.5]},
        {"edges": [0, 1], "accuracy": [0.5, 0.6], "counts": [1, 2]},
        {"edges": [0, 1], "accuracy": ["half"], "counts": [1]},
    ],
)
def test_broken_bin_targets_are_refused(value):
    with pytest.raises(DataFormatError, match="bin targets"):
        BinTargets.from_dict(value)


def test_confidences_out_of_range_have_no_target():
    with pytest.raises(DataFormatError, match=r"row 1 holds 1\.2"):
        estimate_bin_targets([0.5], [1]).confidence_for([0.5, 1.2])


def test_few_examples_are_drawn_towards_the_overall_accuracy():
    # Two examples in each bin and five of the prior at 3/4: (1 + 15/4) / 7 and (2 + 15/4) / 7.
    targets = estimate_bin_targets([0.2, 0.3, 0.8, 0.9], [0, 1, 1, 1], n_bins=2)
    np.testing.assert_allclose(targets.accuracy, [19 / 28, 23 / 28], rtol=0, atol=1e-12)

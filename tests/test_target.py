"""The EM target: a row's own temperature or the authors' map for the remainder, and the mends of both."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from calib_core.decisions.levels import ConfidenceTargets, equal_width_bins
from calib_core.decisions.target import Remainder, em_target, rank_preserving_target
from calib_core.errors import DataFormatError

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
    got = rank_preserving_target([p], [top_conf], remainder="tanh")
    np.testing.assert_allclose(got[0], by_the_formula(p, top_conf), rtol=0, atol=1e-12)


def test_four_options_by_hand():
    # gamma p = ln 3 / 0.4 * (1, 1/2): tanh = (3^5 - 1) / (3^5 + 1) = 121/122 and (3^2.5 - 1) / (3^2.5 + 1)
    half = (3**2.5 - 1) / (3**2.5 + 1)
    alpha = 0.4 / (3 + 121 / 122 + half)
    want = [0.6, alpha * (1 + 121 / 122), alpha * (1 + half), alpha]
    got = rank_preserving_target([[0.7, 0.2, 0.1, 0.0]], [0.6], remainder="tanh")
    np.testing.assert_allclose(got, [want], rtol=0, atol=1e-12)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_row_that_is_right_but_for_its_temperature_gets_its_true_distribution(data):
    k = data.draw(st.integers(2, 26))
    logits = data.draw(hnp.arrays(np.float64, k, elements=st.floats(0, 3)))
    logits[data.draw(st.integers(0, k - 1))] += 3.5  # one on top, by more than is drawn towards the mean
    temperature = data.draw(st.floats(0.05, 3.5))
    true, p = softmax(logits), softmax(logits / temperature)
    target = rank_preserving_target([p], [true.max()])
    np.testing.assert_allclose(target[0], true, rtol=0, atol=1e-9)


def test_a_row_is_sharpened_four_times_at_most():
    # its top option reaches 0.6 only where the second, nearly equal, has all the rest
    target = rank_preserving_target([[0.3, 0.299, 0.201, 0.2]], [0.6])[0]
    weights = np.array([0.299, 0.201, 0.2]) ** 4
    np.testing.assert_allclose(target[1:], 0.4 * weights / weights.sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("remainder", get_args(Remainder))
@given(case=distributions(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_sums_to_one_keeps_order_and_leaves_the_top_alone_on_top(remainder, case, data):
    p, n_options = case
    top_conf = data.draw(hnp.arrays(np.float64, len(p), elements=confidences))
    target = rank_preserving_target(p, top_conf, n_options=n_options, remainder=remainder)
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
        others = [j for j in range(k) if j != top[row]]
        if top_conf[row] >= 1 / k:
            assert t.max() == t[top[row]]
        if top_conf[row] > 1 / k + 1e-12:  # nearer to it float64 can't tell 1 % of the way
            assert (t[others] < t[top[row]]).all()
        ordered = sorted(others, key=lambda j: p[row, j])
        assert all(t[a] <= t[b] + 1e-15 for a, b in itertools.pairwise(ordered))


@pytest.mark.parametrize("remainder", get_args(Remainder))
@given(case=distributions(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_columns_beyond_a_rows_options_change_nothing(remainder, case, data):
    p, n_options = case
    top_conf = data.draw(hnp.arrays(np.float64, len(p), elements=confidences))
    together = rank_preserving_target(p, top_conf, n_options=n_options, remainder=remainder)
    for row, k in enumerate(n_options):
        alone = rank_preserving_target(p[row : row + 1, :k], top_conf[row : row + 1], remainder=remainder)
        np.testing.assert_allclose(together[row, :k], alone[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("remainder", get_args(Remainder))
def test_the_largest_other_share_is_held_below_the_top_confidence(remainder):
    # the authors' formula alone gives the second option 0.36 of the 0.75 that are left, the top has 0.25
    assert max(by_the_formula([0.6, 0.4, 1e-9, 1e-9], 0.25)) > 0.35
    np.testing.assert_allclose(
        rank_preserving_target([[0.6, 0.4, 0.0, 0.0]], [0.25], remainder=remainder),
        [[0.25] * 4],
        rtol=0,
        atol=1e-15,
    )
    mended = rank_preserving_target([[0.5, 0.5, 0.0, 0.0]], [0.3], remainder=remainder)[0]
    second = 0.7 / 3 + 0.99 * (0.3 - 0.7 / 3)
    np.testing.assert_allclose(mended, [0.3, second, *[(0.7 - second) / 2] * 2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("remainder", get_args(Remainder))
def test_options_without_any_probability_share_the_rest_evenly(remainder):
    target = rank_preserving_target([[1.0, 0.0, 0.0, 0.0]], [0.4], remainder=remainder)
    np.testing.assert_allclose(target, [[0.4, 0.2, 0.2, 0.2]], rtol=0, atol=1e-15)


@pytest.mark.parametrize("remainder", get_args(Remainder))
def test_full_confidence_leaves_nothing_for_the_others(remainder):
    target = rank_preserving_target([[0.5, 0.3, 0.2]], [1.0], remainder=remainder)
    assert target.tolist() == [[1.0, 0.0, 0.0]]


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


@given(distributions())
@settings(max_examples=100, deadline=None)
def test_the_em_target_keeps_the_top_option_and_each_rows_own_floor(case):
    def always(accuracy):
        return ConfidenceTargets(log_odds=np.zeros(1), accuracy=np.array([accuracy]), estimator="given")

    p, n_options = case
    target = em_target(p, always(0.0), n_options)
    top = p.argmax(axis=1)
    # a target accuracy of 0 becomes a plain guess over the row's own options
    want = np.where(np.arange(p.shape[1]) < n_options[:, None], 1 / n_options[:, None], 0.0)
    np.testing.assert_allclose(target, want, rtol=0, atol=1e-12)
    target = em_target(p, always(0.5), n_options)
    np.testing.assert_allclose(target[np.arange(len(p)), top], 0.5, rtol=0, atol=1e-15)


def test_a_float32_softmax_is_accepted():
    logits = np.random.default_rng(0).normal(scale=5, size=(200, 26)).astype(np.float32)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert p.dtype == np.float32
    target = em_target(p, equal_width_bins(np.array([0.2, 0.9]), np.array([0.0, 1.0])))
    np.testing.assert_allclose(target.sum(axis=1), 1.0, rtol=0, atol=SUM)

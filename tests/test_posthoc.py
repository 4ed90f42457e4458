"""Temperature scaling finds the temperature that is there, and leaves the answers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize_scalar

from calib_core.decisions.temperature import apply_temperature, cross_fitted, fit_temperature
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.metrics.figures import nll_nats
from calib_core.predictions.table import Predictions


def table(logits: Any, labels: Any, n_options: Any = None) -> Predictions:
    n, width = np.shape(logits)
    return Predictions(
        ids=tuple(str(i) for i in range(n)),
        labels=np.asarray(labels, np.int64),
        logits=np.asarray(logits, np.float32),
        n_options=np.full(n, width) if n_options is None else n_options,
        subjects=(None,) * n,
    )


def drawn(n: int, temperature: float, seed: int = 0) -> Predictions:
    """Labels drawn from softmax(z), logits z times `temperature`; rows with 3 and with 5 options."""
    rng = np.random.default_rng(seed)
    n_options = rng.choice([3, 5], n)
    z = np.where(np.arange(5) < n_options[:, None], 1.5 * rng.normal(size=(n, 5)), -np.inf)
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (rng.random(n)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    return table(z * temperature, labels, n_options)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_overconfident_logits_is_found(temperature: float) -> None:
    assert fit_temperature(drawn(20_000, temperature)) == pytest.approx(temperature, rel=0.03)


def test_the_fit_is_the_minimum_of_the_nll() -> None:
    predictions = drawn(300, 2.5)

    def nll(t: float) -> float:
        return nll_nats(apply_temperature(predictions, t).probs(), predictions.labels)

    t = fit_temperature(predictions)
    independent = minimize_scalar(nll, bracket=(1.0, 3.0), method="brent").x
    assert t == pytest.approx(independent, rel=1e-3)
    assert nll(t) < min(nll(t * 1.05), nll(t / 1.05))


def test_scaling_back_gives_temperature_one() -> None:
    predictions = drawn(500, 3.0)
    scaled = apply_temperature(predictions, fit_temperature(predictions))
    assert fit_temperature(scaled) == pytest.approx(1.0, abs=1e-4)


def test_the_limits_are_returned_where_the_best_lies_beyond() -> None:
    assert fit_temperature(table([[0.1, 0.0]] * 3, [0, 0, 0])) == pytest.approx(0.01, rel=1e-6)
    assert fit_temperature(table([[1.0, 0.0]] * 3, [1, 1, 1])) == pytest.approx(100, rel=1e-6)


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-1e4, 1e4, width=32)
    ),
    st.floats(0.01, 100),
)
def test_the_top_option_stays_the_top_option(logits: Any, temperature: float) -> None:
    before = table(logits, np.zeros(len(logits)))
    np.testing.assert_array_equal(apply_temperature(before, temperature).top(), before.top())


def test_the_top_option_stays_where_rounding_merges_logits() -> None:
    below_two = np.nextafter(np.float32(2), np.float32(0))
    logits = np.array([[below_two, 2.0]], np.float32)
    merged = [t for t in np.linspace(1, 3, 999) if np.ptp(logits / np.float32(t)) == 0]
    assert merged  # else nothing is tried here
    for t in merged:
        assert apply_temperature(table(logits, [0]), t).top().tolist() == [1]


def test_everything_else_is_kept() -> None:
    before = drawn(5, 2.0)
    after = apply_temperature(before, 2.0)
    assert after.ids == before.ids
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.n_options, before.n_options)
    np.testing.assert_allclose(
        after.log_probs()[:, 0] - after.log_probs()[:, 1],
        (before.logits[:, 0] - before.logits[:, 1]) / 2,
        atol=1e-6,
    )


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_a_wrong_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature must be a positive number"):
        apply_temperature(drawn(2, 1.0), temperature)


def test_a_fit_needs_labelled_rows() -> None:
    with pytest.raises(DataFormatError, match="row 2, field 'label'"):
        fit_temperature(table([[1.0, 0.0]] * 2, [0, -1]))
    with pytest.raises(NotEnoughDataError, match="no rows"):
        fit_temperature(drawn(2, 1.0).subset(np.zeros(2, bool)))


def test_cross_fitting_takes_rows_of_any_number_of_options() -> None:
    random = np.random.default_rng(0)
    k = np.where(np.arange(50) % 5 == 0, 7, 4)  # all rows with seven options are in one part
    logits = np.where(np.arange(7) < k[:, None], random.normal(size=(50, 7)), -np.inf)
    table = Predictions.from_logits([row[:n].tolist() for row, n in zip(logits, k, strict=True)], [0] * 50)
    crossed = cross_fitted(table)
    assert crossed.logits.shape == (50, 7)
    assert (crossed.top() == table.top()).all()
    assert not np.isnan(crossed.probs()).any()

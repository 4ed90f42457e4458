"""Figures agree with netcal (float64), scikit-learn, relplot and numbers worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calib_core.metrics import figures as metrics

relplot = pytest.importorskip("relplot")
netcal = pytest.importorskip("netcal.metrics")
sklearn = pytest.importorskip("sklearn.metrics")

# p, y, bins, conf-ECE with left-closed bins
WORKED = [
    ([0.5, 0.5, 0.5, 0.9, 1.0], [0, 1, 0, 1, 1], 2, 0.08),
    ([0.95, 0.95, 1.0, 1.0], [1, 1, 0, 1], 10, 0.225),
    ([0.52, 0.61, 0.70, 0.79, 0.83, 0.88, 0.93, 0.99], [1, 0, 1, 1, 0, 1, 1, 1], 4, 0.07375),
]


def random_table(seed: int, n: int = 500) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    conf = rng.uniform(0.2, 1, n)
    return conf, (rng.random(n) < conf - 0.15).astype(np.int64)


def random_probs(seed: int, n: int = 300, k: int = 4) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(k, 0.6), n), rng.integers(0, k, n)


@pytest.mark.parametrize(("conf", "correct", "n_bins", "expected"), WORKED)
def test_worked_numbers(conf: Any, correct: Any, n_bins: int, expected: float) -> None:
    assert metrics.conf_ece(conf, correct, n_bins=n_bins) == pytest.approx(expected, abs=1e-12)
    reference = netcal.ECE(n_bins).measure(np.array(conf, np.float64), np.array(correct))
    assert reference == pytest.approx(expected, abs=1e-12)


def test_worked_number_of_equal_mass_bins() -> None:
    conf, correct, n_bins, _ = WORKED[2]
    assert metrics.adaptive_ece(conf, correct, n_bins=n_bins) == pytest.approx(0.17875, abs=1e-12)


@given(st.integers(1, 30), st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_conf_ece_agrees_with_netcal_on_edge_lattices(n_bins: int, n: int, data: st.DataObject) -> None:
    # every confidence sits on a bin edge, or one float beside it
    edges = np.linspace(0, 1, n_bins + 1)
    conf = edges[data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, n_bins)))]
    toward = data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.5, 1.0])))
    conf = np.where(toward == 0.5, conf, np.nextafter(conf, toward))
    correct = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 1)))
    reference = netcal.ECE(n_bins).measure(conf, correct)
    assert metrics.conf_ece(conf, correct, n_bins=n_bins) == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_ece_and_mce_agree_with_netcal_on_random_tables(seed: int, n_bins: int) -> None:
    conf, correct = random_table(seed)
    assert metrics.conf_ece(conf, correct, n_bins=n_bins) == pytest.approx(
        netcal.ECE(n_bins).measure(conf, correct), abs=1e-12
    )
    assert metrics.mce(conf, correct, n_bins=n_bins) == pytest.approx(
        netcal.MCE(n_bins).measure(conf, correct), abs=1e-12
    )


@pytest.mark.parametrize("k", [2, 4, 7])
def test_classwise_ece_is_the_mean_of_netcals_one_class_at_a_time(k: int) -> None:
    probs, labels = random_probs(k, k=k)
    reference = np.mean([netcal.ECE(10).measure(probs[:, c], (labels == c).astype(int)) for c in range(k)])
    assert metrics.classwise_ece(probs, labels) == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize("k", [3, 4, 7])
def test_brier_and_nll_agree_with_scikit_learn(k: int) -> None:
    probs, labels = random_probs(k, k=k)
    classes = np.arange(k)
    assert metrics.nll_nats(probs, labels) == pytest.approx(
        sklearn.log_loss(labels, probs, labels=classes), abs=1e-12
    )
    reference = sklearn.brier_score_loss(labels, probs, labels=classes, scale_by_half=False)
    assert metrics.brier(probs, labels) == pytest.approx(reference, abs=1e-12)


@given(st.integers(2, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_auroc_agrees_with_scikit_learn_with_ties(n: int, data: st.DataObject) -> None:
    conf = data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])))
    correct = data.draw(
        hnp.arrays(np.int64, n, elements=st.integers(0, 1)).filter(lambda c: 0 < c.sum() < len(c))
    )
    assert metrics.auroc(conf, correct) == pytest.approx(sklearn.roc_auc_score(correct, conf), abs=1e-12)


@pytest.mark.parametrize("n", [50, 500, 5000])
@pytest.mark.parametrize("gap", [0.0, 0.05, 0.15, 0.6])
def test_smooth_ece_agrees_with_relplot(n: int, gap: float) -> None:
    rng = np.random.default_rng(n)
    conf = rng.uniform(0.25, 1, n)
    correct = (rng.random(n) < conf - gap).astype(np.float64)
    # relplot halves the bandwidth's range ten times (steps of 1/1024) and adds 1e-4 to its densities
    assert metrics.smooth_ece(conf, correct) == pytest.approx(relplot.smECE(conf, correct), abs=1.5e-3)


def test_worked_number_of_smooth_ece() -> None:
    conf, correct, _, _ = WORKED[2]
    assert relplot.smECE(np.array(conf), np.array(correct, float)) == pytest.approx(0.07777, abs=5e-6)
    assert metrics.smooth_ece(conf, correct) == pytest.approx(0.07777, abs=1e-3)

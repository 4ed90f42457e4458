"""The bounds hold in every world; the regime test is right where the target is known."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from synthetic import make_world, memorised, scrambled, softmax, tempered

from calib_core.decisions.bounds import (
    _reachable_correct as reachable_correct,
)
from calib_core.decisions.bounds import (
    regime_test,
    required_examples,
    target_calibration_error,
    upper_bounds,
)
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.metrics.binning import bin_index
from calib_core.metrics.figures import conf_ece
from calib_core.metrics.gaps import debiased_ece_interval
from calib_core.predictions.table import Predictions

ROUNDING = 1e-12


@st.composite
def worlds_with_models(draw):
    """A world, and a model in it from exact to unrelated, sure or unsure."""
    seed = draw(st.integers(0, 2**31))
    world = make_world(
        draw(st.integers(1, 200)),
        seed,
        options=tuple(draw(st.lists(st.integers(2, 8), min_size=1, max_size=3))),
        spread=draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 10.0])),
    )
    p = world.q
    if draw(st.booleans()):
        p = scrambled(p, world.n_options, draw(st.sampled_from([0.3, 1.0])), seed)
    p = tempered(p, draw(st.sampled_from([0.1, 0.5, 1.0, 3.0])))
    if draw(st.booleans()):
        p = memorised(p, world.labels, draw(st.sampled_from([0.1, 0.5, 0.99])))
    return world, p


def population_ece(p, q):
    """ECE of p on these questions where each label is replaced by its expectation under q."""
    top = p.argmax(axis=1)
    conf = np.minimum(p.max(axis=1), 1.0)
    gaps = np.bincount(bin_index(conf, 10), weights=q[np.arange(len(q)), top] - conf)
    return np.abs(gaps).sum() / len(q)


@given(worlds_with_models())
@settings(max_examples=150, deadline=None)
def test_upper_bounds_hold_in_every_world(case):
    world, p = case
    bounds = upper_bounds(p, world.q)
    chain = [
        population_ece(p, world.q),
        bounds.target_calibration_error,
        bounds.total_variation,
        bounds.pinsker,
        bounds.information,
    ]
    assert all(a <= b + ROUNDING for a, b in itertools.pairwise(chain)), chain


@given(worlds_with_models())
@settings(max_examples=150, deadline=None)
def test_lower_bounds_hold_for_every_labelled_set(case):
    world, p = case
    conf, top = np.minimum(p.max(axis=1), 1.0), p.argmax(axis=1)
    correct = (top == world.labels).astype(float)
    ece = conf_ece(conf, correct)
    expected = world.q[np.arange(len(p)), top].mean()
    assert ece >= abs(correct.mean() - conf.mean()) - ROUNDING
    assert ece + target_calibration_error(p, world.q) >= correct.mean() - expected - ROUNDING
    assert expected <= world.critical_accuracy + ROUNDING


def test_upper_bounds_by_hand():
    q, p = [[0.5, 0.5], [1.0, 0.0]], [[0.8, 0.2], [0.5, 0.5]]
    kl = [0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2), np.log(2)]
    bounds = upper_bounds(p, q)
    assert bounds.target_calibration_error == pytest.approx((0.3 + 0.5) / 2, abs=1e-15)
    assert bounds.total_variation == pytest.approx((0.3 + 0.5) / 2, abs=1e-15)
    assert bounds.pinsker == pytest.approx((np.sqrt(kl[0] / 2) + np.sqrt(kl[1] / 2)) / 2, abs=1e-15)
    assert bounds.information == pytest.approx(np.sqrt((kl[0] + kl[1]) / 4), abs=1e-15)
    assert upper_bounds(q, q).information == 0


TRIALS = 20


def models(name, world, *, seen):
    """The three models whose regimes are known, on questions trained on (`seen`) and on fresh ones."""
    sharp = tempered(world.q, 0.5)
    p = {
        "q itself": world.q,
        "tempered": sharp,
        "memoriser": memorised(sharp, world.labels, 0.9) if seen else sharp,
        "calibrated memoriser": memorised(world.q, world.labels, 0.9) if seen else world.q,
    }[name]
    return world.predictions(p)


@functools.cache
def in_world(name, trial, *, n=1000, **options):
    options = {"n_resamples": 200, "seed": trial, **options}
    fit, heldout = make_world(n, 2 * trial), make_world(n, 2 * trial + 1)
    return regime_test(models(name, fit, seen=True), models(name, heldout, seen=False), **options)


@pytest.mark.parametrize(
    ("name", "regime"),
    [
        ("q itself", "calibrated"),
        ("tempered", "calibratable"),
        ("memoriser", "non_calibratable"),
        ("calibrated memoriser", "calibrated"),
    ],
)
def test_the_regime_is_right_in_95_of_100_worlds(name, regime):
    """A small version of benchmarks/regime_rates.py."""
    found = Counter(in_world(name, trial).regime for trial in range(TRIALS))
    assert found[regime] >= 0.95 * TRIALS, found


@pytest.mark.parametrize("model", ["q itself", "tempered", "memoriser"])
def test_critical_accuracy_is_the_targets_expected_accuracy(model):
    """A model that ranks as q does: the estimate is E max q, without bias, and its interval says so."""
    truth = make_world(200_000, 999).critical_accuracy
    found = [in_world(model, trial).critical_accuracy for trial in range(TRIALS)]
    assert np.mean([interval.value for interval in found]) == pytest.approx(truth, abs=0.005)
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) >= 0.85


def test_a_worse_ranking_lowers_the_critical_accuracy_to_what_it_can_reach():
    fit, heldout = make_world(5000, 0), make_world(5000, 1)
    p = [scrambled(tempered(w.q, 0.5), w.n_options, 0.6, 7) for w in (fit, heldout)]
    result = regime_test(fit.predictions(p[0]), heldout.predictions(p[1]), n_resamples=200)
    reachable = heldout.q[np.arange(5000), p[1].argmax(axis=1)].mean()
    assert result.critical_accuracy.value == pytest.approx(reachable, abs=0.02)
    assert result.critical_accuracy.value < heldout.critical_accuracy - 0.2
    assert result.regime == "calibratable"


def test_a_model_worse_than_guessing_has_the_guesss_critical_accuracy():
    """Its target knows better than to follow it: 1 / K, which max_k q_k is never below."""
    worlds = [make_world(2000, seed, spread=1.0) for seed in (0, 1)]
    p = [tempered(softmax(-3 * np.log(w.q)), 1.0) for w in worlds]
    result = regime_test(*(w.predictions(x) for w, x in zip(worlds, p, strict=True)), n_resamples=200)
    assert result.accuracy_heldout.high < 0.2
    assert result.critical_accuracy.value == pytest.approx(0.25, abs=1e-3)
    assert result.lower_bound.value == 0


def test_critical_accuracy_with_mixed_numbers_of_options_guesses_by_row():
    worlds = [make_world(2000, seed, options=(2, 5), spread=1.0) for seed in (0, 1)]
    p = [softmax(np.where(w.q > 0, -3 * np.log(np.maximum(w.q, 1e-300)), -np.inf)) for w in worlds]
    result = regime_test(*(w.predictions(x) for w, x in zip(worlds, p, strict=True)), n_resamples=200)
    guess = (1 / worlds[1].n_options).mean()
    assert result.critical_accuracy.value == pytest.approx(guess, abs=0.02)
    assert result.accuracy_heldout.high < guess - 0.03


def test_a_given_critical_accuracy_is_taken_as_it_is():
    result = in_world("memoriser", 0, critical_accuracy=0.97)
    assert (result.critical_accuracy.low, result.critical_accuracy.high) == (0.97, 0.97)
    assert result.lower_bound.value == pytest.approx(result.accuracy_fit.value - 0.97, abs=1e-12)
    assert result.regime == "calibratable"
    assert any("as given" in reason for reason in result.reasons)


def test_lower_bounds_interval_holds_the_independent_difference():
    result = in_world("memoriser", 3, n_resamples=4000)
    low, value, high = (getattr(result.lower_bound, name) for name in ("low", "value", "high"))
    assert value == pytest.approx(result.accuracy_fit.value - result.critical_accuracy.value, abs=1e-12)
    sd = np.sqrt(sum(a.value * (1 - a.value) / 1000 for a in (result.accuracy_fit, result.critical_accuracy)))
    assert value - low == pytest.approx(1.96 * sd, rel=0.1)
    assert high - value == pytest.approx(1.96 * sd, rel=0.1)


def test_the_lower_limit_decides_not_the_figure():
    lower = in_world("memoriser", 0).lower_bound
    assert in_world("memoriser", 0, tolerance=lower.low - 1e-6).regime == "non_calibratable"
    assert in_world("memoriser", 0, tolerance=(lower.low + lower.value) / 2).regime == "calibratable"


def test_a_questions_own_label_has_no_say_in_whether_it_is_guessed():
    world = make_world(80, 2, spread=0.0)
    table = world.predictions(make_world(80, 100).q)  # at chance, and few: one label more tips a bin
    guessed = reachable_correct(table, seed=0) == 0.25
    assert 10 < guessed.sum() < 70
    top = table.top()
    for row in range(80):
        labels = world.labels.copy()
        labels[row] = (top[row] + 1) % 4 if labels[row] == top[row] else top[row]
        again = reachable_correct(replace(table, labels=labels), seed=0)
        assert (again[row] == 0.25) == guessed[row]


def test_sets_of_one_size_are_not_resampled_in_step():
    """The same questions under other names: the difference is 0, but as uncertain as that of two sets."""
    world = make_world(1000, 0)
    sharp = world.predictions(tempered(world.q, 0.5))
    renamed = replace(sharp, ids=tuple(f"{key}'" for key in sharp.ids))
    result = regime_test(sharp, renamed, n_resamples=4000)
    a = result.accuracy_fit.value
    assert result.lower_bound.value == pytest.approx(0, abs=0.005)
    assert result.lower_bound.high == pytest.approx(1.96 * np.sqrt(2 * a * (1 - a) / 1000), rel=0.15)


def test_errors_that_cancel_inside_a_bin_are_not_called_calibrated():
    """Right 0.15 more and 0.15 less often than stated in turn, within every bin of the binned ECE."""

    def table(seed):
        rng = np.random.default_rng(seed)
        conf = rng.uniform(0.4, 1.0, 1500)
        true = np.clip(conf + 0.15 * np.where((conf * 10) % 1 < 0.5, 1, -1), 0, 1)
        right = rng.random(1500) < true
        rest = (1 - conf)[:, None] / 3 * np.ones(4)
        rest[:, 0] = conf
        return Predictions.from_probs(rest, np.where(right, 0, 1), ids=[f"{seed}-{i}" for i in range(1500)])

    for seed in range(5):
        result = regime_test(table(2 * seed), table(2 * seed + 1), n_resamples=300)
        assert result.debiased_ece.high <= 0.08 < result.fine_ece.value
        assert result.regime == "calibratable"
        assert any("errors cancel within wide bins" in reason for reason in result.reasons)


@pytest.mark.parametrize("easier", [0.12, 0.2])
def test_easier_questions_are_not_taken_for_memorised_ones(easier):
    """A model that learnt nothing by heart, and questions for fine-tuning that are easier by 12 points."""
    heldout = make_world(1500, 1, spread=1.4)
    spread = brentq(
        lambda x: (
            make_world(40_000, 7, spread=x).critical_accuracy
            - make_world(40_000, 7, spread=1.4).critical_accuracy
            - easier
        ),
        1.4,
        6.0,
        xtol=0.01,
    )
    for seed in range(5):
        fit, heldout = make_world(1500, 2 * seed, spread=spread), make_world(1500, 2 * seed + 1, spread=1.4)
        result = regime_test(
            *(w.predictions(tempered(w.q, 0.4)) for w in (fit, heldout)), n_resamples=200, seed=seed
        )
        assert result.lower_bound.low > result.tolerance
        assert result.regime == "calibratable"
        assert any("so that memorising is not shown" in reason for reason in result.reasons)


def test_a_temperature_is_chosen_where_it_is_enough_and_allowed():
    result = in_world("tempered", 0)
    assert result.branch == "temperature"
    assert result.temperature.value == pytest.approx(2.0, abs=0.2)  # what undoes a temperature of 0.5
    assert result.temperature.ece.high <= 0.08
    assert result.temperature.auroc.low > 0.5
    assert result.temperature.brier_skill.low > 0
    assert "One temperature, " in result.reasons[-1]
    assert "it is enough" in result.reasons[-1]
    assert in_world("tempered", 0, repairs="cft,rcft").branch == "cft"
    assert in_world("tempered", 0, repairs="rcft").branch == "rcft"
    assert in_world("memoriser", 0).branch == "temperature"
    assert in_world("memoriser", 0, repairs="cft,rcft").branch == "rcft"
    assert in_world("memoriser", 0, repairs="cft").branch == "cft"
    assert in_world("q itself", 0).branch == "none"


def test_a_temperature_is_not_enough_where_the_error_has_two_directions():
    """Right about half of the questions, too sure of the others: one number mends neither."""

    def mixed(world):
        half = np.arange(len(world.q)) % 2 == 0
        return world.predictions(np.where(half[:, None], tempered(world.q, 0.4), world.q))

    tables = [mixed(make_world(2500, seed)) for seed in (0, 1)]
    result = regime_test(*tables, n_resamples=200, target_ece=0.05)
    assert result.temperature.has_resolution
    assert result.temperature.ece.high > 0.05
    assert result.branch == "cft"
    only = regime_test(*tables, n_resamples=200, target_ece=0.05, repairs="temperature")
    assert only.branch == "temperature"
    assert "not shown to be within the target" in only.reasons[-1]


def test_a_model_without_resolution_is_told_so():
    """Sure of options that have nothing to do with the answer."""
    tables = [
        make_world(1200, seed, spread=1.0).predictions(tempered(make_world(1200, seed + 100).q, 0.5))
        for seed in (0, 1)
    ]
    result = regime_test(*tables, n_resamples=200)
    assert not result.temperature.has_resolution
    assert result.temperature.value > 10
    assert result.branch == "cft"  # training may teach it
    assert any("not shown to tell right answers from wrong ones" in reason for reason in result.reasons)
    assert any("makes all options about equally likely" in reason for reason in result.reasons)
    nothing = regime_test(*tables, n_resamples=200, repairs="temperature")
    assert nothing.branch == "none"
    assert nothing.regime == "calibratable"
    assert nothing.reasons[-1].startswith("None of the repairs that are allowed (temperature) can help")


def test_groups_of_questions_widen_the_limits():
    """Each question twice under one group: as sure as of the questions once, and less sure than of 2,000."""

    def twice(table, grouped):
        return Predictions.from_logits(
            np.repeat(table.logits, 2, axis=0),
            np.repeat(table.labels, 2),
            ids=[f"{key}-{copy}" for key in table.ids for copy in "ab"],
            groups=[key if grouped else None for key in table.ids for _ in "ab"],
        )

    once = [models("tempered", make_world(1000, seed), seen=False) for seed in (0, 1)]
    together, ignored = (
        regime_test(*(twice(table, grouped) for table in once), n_resamples=400) for grouped in (True, False)
    )
    alone = regime_test(*once, n_resamples=400)
    for name in ("debiased_ece", "accuracy_fit", "critical_accuracy", "unexplained"):
        width, narrow, wide = (
            getattr(result, name).high - getattr(result, name).low for result in (together, ignored, alone)
        )
        assert width == pytest.approx(wide, rel=0.12), name
        assert narrow < 0.85 * width, name


def test_ece_figures_are_those_of_the_other_modules():
    result = in_world("tempered", 1)
    heldout = models("tempered", make_world(1000, 3), seen=False)
    conf, correct = heldout.confidence(), heldout.correct()
    assert result.upper_bound.value == pytest.approx(conf_ece(conf, correct), abs=1e-12)
    assert result.debiased_ece == debiased_ece_interval(conf, correct, n_resamples=200, seed=1)
    assert result.mean_confidence_heldout.value == pytest.approx(conf.mean(), abs=1e-12)
    assert result.accuracy_heldout.value == pytest.approx(correct.mean(), abs=1e-12)


def test_memorising_is_reported_of_a_calibrated_model():
    result = in_world("calibrated memoriser", 0)
    assert result.regime == "calibrated"
    assert result.lower_bound.low > 0.05
    assert any("has memorised answers" in reason for reason in result.reasons)
    assert result.reasons[-1] == "Nothing needs doing."


def test_an_interval_that_holds_the_target_branches_or_stops():
    target_ece = in_world("tempered", 0).debiased_ece.value
    result = in_world("tempered", 0, target_ece=target_ece)
    assert result.undecided
    assert result.regime == "calibratable"
    assert any("not shown to be calibrated" in reason for reason in result.reasons)
    with pytest.raises(NotEnoughDataError, match="questions leave open"):
        in_world("tempered", 0, target_ece=target_ece, on_undecided="stop")
    with pytest.raises(NotEnoughDataError, match=r"about \d+ would decide"):
        in_world("tempered", 0, target_ece=target_ece + 0.02, on_undecided="stop")
    assert not in_world("tempered", 0, on_undecided="stop").undecided


def test_reasons_tell_the_figures():
    result = in_world("memoriser", 0, repairs="cft,rcft")
    text = " ".join(result.reasons)
    assert f"right {100 * result.accuracy_heldout.value:.1f} % of the time" in text
    assert f"{100 * result.mean_confidence_heldout.value:.1f} % sure" in text
    assert f"{result.debiased_ece.value:.3f}" in text
    assert f"{result.lower_bound.value:.3f}" in text
    assert "RCFT" in result.reasons[-1]


def test_the_record_is_json():
    result = in_world("memoriser", 0)
    value = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert value["regime"] == "non_calibratable"
    assert value["lower_bound"] == result.lower_bound.to_dict()
    assert value["reasons"] == list(result.reasons)
    assert value["branch"] == "temperature"
    assert value["temperature"]["ece"] == result.temperature.ece.to_dict()
    assert value["repairs"] == ["temperature", "cft", "rcft"]


def test_the_same_seed_gives_the_same_record():
    assert in_world("tempered", 4) == in_world("tempered", 4)
    assert in_world("tempered", 4) != in_world("tempered", 4, seed=5)


def test_on_required_examples_a_perfectly_calibrated_model_passes_as_likely_as_not():
    """In the world that the noise model calls worst: confidences in all bins in proportion to m (1 - m)."""
    n = required_examples(0.08)
    middle = (np.arange(10) + 0.5) / 10
    share = middle * (1 - middle) / (middle * (1 - middle)).sum()
    passed = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        conf = (rng.choice(10, size=n, p=share) + rng.random(n)) / 10
        correct = rng.random(n) < conf
        passed += debiased_ece_interval(conf, correct, n_resamples=200, seed=10**6 + trial).high <= 0.08
    assert 0.4 <= passed / 100 <= 0.75


def test_required_examples_rise_with_what_is_asked():
    assert required_examples(0.02) > required_examples(0.08) > required_examples(0.3) > 2
    assert required_examples(0.08, confidence=0.99) > required_examples(0.08, confidence=0.9)
    assert required_examples(0.08, n_bins=20) > required_examples(0.08, n_bins=10)
    # both accuracies known within the target either way: 1.96 sqrt(2 / 4 / n) <= 0.08
    assert required_examples(0.08, n_bins=2) == 301


def test_too_few_questions_are_refused_with_the_number_needed():
    fit, heldout = make_world(354, 0), make_world(1000, 1)
    with pytest.raises(
        NotEnoughDataError, match=r"fit has 354 questions, but at target_ece 0\.08 .* needs 355"
    ):
        regime_test(fit.predictions(fit.q), heldout.predictions(heldout.q))
    with pytest.raises(NotEnoughDataError, match=r"fit has 354 and heldout has 300"):
        regime_test(fit.predictions(fit.q), heldout.predictions(heldout.q).subset(range(300)))
    enough = make_world(355, 2)
    assert regime_test(enough.predictions(enough.q), heldout.predictions(heldout.q)).n_required == 355


def test_unknown_labels_are_refused():
    fit, heldout = (make_world(400, seed) for seed in (0, 1))
    unlabelled = replace(
        heldout.predictions(heldout.q), labels=np.where(np.arange(400) == 7, -1, heldout.labels)
    )
    with pytest.raises(DataFormatError, match=r"^heldout: .*1 of 400 rows have no label"):
        regime_test(fit.predictions(fit.q), unlabelled)
    with pytest.raises(DataFormatError, match=r"^fit: "):
        regime_test(unlabelled, fit.predictions(fit.q))


def test_two_protocols_or_two_adapters_are_refused():
    fit, heldout = (make_world(400, seed) for seed in (0, 1))
    ours = {"model": "m", "adapter": "a"}
    table = fit.predictions(fit.q, ours)
    for other in ({**ours, "model": "n"}, {**ours, "adapter": None}, None):
        with pytest.raises(DataFormatError):
            regime_test(table, heldout.predictions(heldout.q, other))
    assert regime_test(table, heldout.predictions(heldout.q, ours)).n_fit == 400


def test_a_heldout_question_that_was_trained_on_is_refused():
    fit, heldout = (make_world(400, seed) for seed in (0, 1))
    table = fit.predictions(fit.q)
    overlapping = replace(heldout.predictions(heldout.q), ids=(*heldout.ids[:-2], *fit.ids[:2]))
    with pytest.raises(DataFormatError, match="share 2 question ids"):
        regime_test(table, overlapping)


def test_parameters_out_of_range_are_all_named():
    with pytest.raises(ConfigError) as error:
        in_world("q itself", 0, target_ece=0.0, tolerance=-1.0, critical_accuracy=2.0, on_undecided="maybe")
    for received in ("0.0", "-1.0", "2.0", "'maybe'"):
        assert received in str(error.value)
    for options in (
        {"n_bins": 0},
        {"confidence": 1.0},
        {"n_resamples": 0},
        {"repairs": "sft"},
        {"repairs": ""},
        {"cluster_by": "id"},
    ):
        with pytest.raises(ConfigError):
            in_world("q itself", 0, **options)

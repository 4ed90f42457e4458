"""Folds: stable, disjoint, and honest about what was dropped."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_core.data.folds import FOLDS, Folds, check_disjoint, folds_from_files, keep_apart, split_questions
from calib_core.data.questions import Question
from calib_core.data.texts import normalize_text
from calib_core.errors import ConfigError, DataFormatError


def ask(text, *, name=None, choices=("a", "b"), answer=0):
    return Question(id=name or text, question=text, choices=choices, answer=answer)


MANY = [ask(f"Question {i}?") for i in range(3000)]


def fold_of(folds):
    return {question.id: name for name in FOLDS for question in getattr(folds, name)}


def test_every_question_is_in_one_fold_and_the_shares_are_right():
    folds = split_questions(MANY, fractions=(0.5, 0.2, 0.3))
    assert len(fold_of(folds)) == sum(len(getattr(folds, name)) for name in FOLDS) == 3000
    for name, share in zip(FOLDS, (0.5, 0.2, 0.3), strict=True):
        assert abs(len(getattr(folds, name)) / 3000 - share) < 0.03


def test_the_split_is_the_same_on_every_machine():
    folds = split_questions([ask(f"Stable {i}?") for i in range(8)])
    assert "".join(fold_of(folds)[f"Stable {i}?"][0] for i in range(8)) == "fcfccfff"


ALL_FOLDS = fold_of(split_questions(MANY))


@given(st.integers(0, 9), st.integers(1, 300))
def test_no_question_moves_when_data_grow_or_are_reordered(seed, count):
    part = random.Random(seed).sample(MANY, count)  # noqa: S311
    assert fold_of(split_questions(part)).items() <= ALL_FOLDS.items()


def test_order_of_input_does_not_matter():
    shuffled = random.Random(1).sample(MANY, len(MANY))  # noqa: S311
    assert split_questions(shuffled) == split_questions(MANY)


def test_the_same_text_goes_to_the_same_fold_whatever_case_and_options():
    for i in range(50):
        folds = split_questions([ask(f"Is it {i}?"), ask(f"IS  it {i}?", choices=("c", "d", "e"))])
        assert len(set(fold_of(folds).values())) == 1


def test_limits_are_stable():
    limited = split_questions(MANY, limits=(100, 50, 0))
    full = split_questions(MANY)
    assert (len(limited.fit), len(limited.calibration)) == (100, 50)
    assert limited.test == full.test
    assert set(limited.fit) <= set(full.fit)
    assert set(split_questions(MANY, limits=(40, 0, 0)).fit) <= set(limited.fit)


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5, 0.0), (0.4, 0.3, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)]
)
def test_shares_that_make_no_sense(fractions):
    with pytest.raises(ConfigError, match="give three shares above 0 that add up to 1"):
        split_questions(MANY, fractions=fractions)


def test_limits_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"limits are \(-1, 0, 0\)"):
        split_questions(MANY, limits=(-1, 0, 0))


def overlap(dropped_from, held_by, ids, *, same, near=0):
    counts = {"n": len(ids), "n_same_options": same, "n_near": near}
    return {"dropped_from": dropped_from, "held_by": held_by, **counts, "ids": ids}


def test_overlaps_between_files_stay_where_they_judge():
    fit = [ask("One?", name="f1"), ask("Two?", name="f2"), ask("Three?", name="f3"), ask("Four?", name="f4")]
    calibration = [ask("Two?", name="c2"), ask("Three?", name="c3"), ask("Five?", name="c5")]
    test = [ask("Three?", name="t3"), ask("four?", name="t4", choices=("x", "y")), ask("Six?", name="t6")]
    folds = folds_from_files(fit, calibration, test)
    assert {question.id for question in folds.fit} == {"f1"}
    assert {question.id for question in folds.calibration} == {"c2", "c5"}
    assert {question.id for question in folds.test} == {"t3", "t4", "t6"}
    assert folds.to_dict() == {
        "fit": 1,
        "calibration": 2,
        "test": 3,
        "overlaps": [
            overlap("fit", "test", ["f3", "f4"], same=1),
            overlap("fit", "calibration", ["f2"], same=1),
            overlap("calibration", "test", ["c3"], same=1),
        ],
        "alike": {"n_groups": 0, "n_questions": 0, "groups": []},
    }


def test_files_without_overlaps_are_kept_whole():
    folds = folds_from_files(MANY[:10], MANY[10:20], MANY[20:30], limits=(0, 5, 0))
    assert set(folds.fit) == set(MANY[:10])
    assert len(folds.calibration) == 5
    assert folds.overlaps == ()


small = st.lists(st.sampled_from(["One?", "Two?", "three?", "THREE?", "Four?"]).map(ask), max_size=6)


@given(small, small, small)
def test_folds_from_files_are_always_disjoint_and_lose_nothing_else(fit, calibration, test):
    folds = folds_from_files(fit, calibration, test)
    texts = [{normalize_text(q.question) for q in part} for part in (fit, calibration, test)]
    kept = [{normalize_text(q.question) for q in getattr(folds, name)} for name in FOLDS]
    assert kept == [texts[0] - texts[1] - texts[2], texts[1] - texts[2], texts[2]]


def test_dropping_counts_the_very_same_questions_apart():
    held = [ask("One?", choices=("a", "b"))]
    shared = [ask("One?", name="same", choices=("b", "a")), ask("ONE?", name="other", choices=("a", "c"))]
    parts, (overlap,) = keep_apart({"fit": [*shared, ask("Two?")], "test": held})
    assert [question.id for question in parts["fit"]] == ["Two?"]
    assert (overlap.ids, overlap.n_same_options) == (("same", "other"), 1)


def test_folds_that_share_a_question_do_not_pass():
    folds = Folds(fit=(ask("One?"),), calibration=(ask("Two?"),), test=(ask("one?", name="x"),))
    with pytest.raises(
        DataFormatError, match=r"folds fit and test share 1 questions \(ids in fit: 'One\?'\)"
    ):
        check_disjoint(folds)
    check_disjoint(Folds(fit=(ask("One?"),), calibration=(ask("Two?"),), test=()))

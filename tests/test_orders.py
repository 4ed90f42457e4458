"""Options in another order every epoch: the same question, its answer under another letter."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_questions

from calib_core.data.questions import Question
from calib_core.predictions.table import Predictions
from calib_core.scoring.orders import average_over_orders, turned
from calib_core.scoring.questions import EncodedQuestions
from calib_core.training.orders import SPARE_TOKENS, CyclicOrders

CONTEXT = 100


def encoded(questions, tokens: int = 10) -> EncodedQuestions:
    n = len(questions)
    return EncodedQuestions(
        questions=tuple(questions),
        input_ids=((0,) * tokens,) * n,
        letter_ids=tuple(tuple(range(len(q.choices))) for q in questions),
        prompt={},
        tokenizer="",
    )


def orders(questions, *, seed: int = 0, tokens: int = 10) -> CyclicOrders:
    return CyclicOrders(encoded(questions, tokens), encoded, context_tokens=CONTEXT, seed=seed)


def answers(question: Question) -> str:
    return question.choices[question.answer]


@given(n=st.integers(2, 26), answer=st.integers(0, 25), shift=st.integers(0, 1000))
def test_a_rotation_keeps_the_answer_and_the_cycle(n, answer, shift) -> None:
    choices = tuple(f"option {i}" for i in range(n))
    question = Question(id="a", question="?", choices=choices, answer=answer % n)
    other = turned(question, shift)
    assert answers(other) == answers(question)
    assert turned(other, n - shift % n) == question
    assert replace(other, choices=choices, answer=question.answer) == question


def test_k_epochs_show_every_order_once_and_the_answer_under_every_letter() -> None:
    questions = make_questions(60, seed=1, options=(2, 3, 4, 5))
    turn = orders(questions)
    for row, question in enumerate(questions):
        k = len(question.choices)
        seen = [turn(epoch).questions[row] for epoch in range(k)]
        assert len({one.choices for one in seen}) == k
        assert sorted(one.answer for one in seen) == list(range(k))
        assert {answers(one) for one in seen} == {answers(question)}
        assert turn(k).questions[row] == seen[0]


def test_one_epoch_mixes_the_rotations_and_the_seed_decides_which() -> None:
    questions = [
        Question(id=str(i), question="?", choices=("w", "x", "y", "z"), answer=0) for i in range(400)
    ]
    epoch = orders(questions)(0).questions
    assert min(Counter(question.answer for question in epoch).values()) > 70
    assert epoch == orders(questions)(0).questions != orders(questions, seed=1)(0).questions


@pytest.mark.parametrize(
    ("option", "turns"),
    [
        ("Both A and C", False),
        ("(a) or (b)", False),
        ("Options A, B", False),
        ("None of the above", False),
        ("all of this", True),
        ("The first of the above", False),
        ("Vitamin B and iron", True),
        ("an apple", True),
    ],
)
def test_a_question_whose_options_name_each_other_keeps_its_order(option, turns) -> None:
    question = Question(id="a", question="?", choices=("one", "two", "three", option), answer=1)
    seen = {orders([question])(epoch).questions[0] for epoch in range(4)}
    assert (len(seen) == 4) is turns


def test_a_question_that_fills_the_context_keeps_its_order() -> None:
    questions = make_questions(3, seed=1, options=(4,))
    full = orders(questions, tokens=CONTEXT - SPARE_TOKENS + 1)
    assert all(full(epoch).questions == tuple(questions) for epoch in range(4))
    assert orders(questions, tokens=CONTEXT - SPARE_TOKENS)(1).questions != tuple(questions)


LEAN = np.array([1.0, 0.5, 0.0, -0.5, -1.0])


def leaning(strength: float):
    """Scores a question by its options' own merit, plus a leaning towards the first letters."""

    def score(given: EncodedQuestions) -> Predictions:
        questions = given.questions
        width = max(len(q.choices) for q in questions)
        logits = np.full((len(questions), width), -np.inf, dtype=np.float32)
        for row, question in enumerate(questions):
            merit = [zlib.crc32(choice.encode()) % 1000 / 400 for choice in question.choices]
            logits[row, : len(merit)] = np.array(merit) + strength * LEAN[: len(merit)]
        return Predictions(
            ids=tuple(q.id for q in questions),
            labels=np.array([q.answer for q in questions]),
            logits=logits,
            n_options=np.array([len(q.choices) for q in questions]),
            letter_mass=np.array([0.1 * (1 + len(q.choices[0]) % 3) for q in questions], dtype=np.float32),
            subjects=(None,) * len(questions),
            protocol={"model": "m"},
        )

    return score


def test_averages_equal_a_loop_over_the_orders_one_by_one() -> None:
    questions = make_questions(25, seed=5, options=(2, 3, 4, 5))
    questions[3] = replace(questions[3], choices=(*questions[3].choices[:-1], "none of the above"))
    averaged, flips = average_over_orders(encoded(questions), encoded, leaning(1.0))
    changed = 0
    for row, question in enumerate(questions):
        k = 1 if row == 3 else len(question.choices)
        found: dict[str, list[float]] = {choice: [] for choice in question.choices}
        tops, masses = set(), []
        for shift in range(k):
            other = turned(question, shift)
            table = leaning(1.0)(encoded([other]))
            for choice, p in zip(other.choices, table.probs()[0], strict=True):
                found[choice].append(p)
            tops.add(other.choices[table.top()[0]])
            masses.append(table.letter_mass[0])
        changed += len(tops) > 1
        expected = [np.mean(found[choice]) for choice in question.choices]
        np.testing.assert_allclose(averaged.probs()[row, : len(expected)], expected, rtol=1e-6)
        assert averaged.letter_mass[row] == pytest.approx(np.mean(masses), rel=1e-6)
    assert flips == pytest.approx(changed / 25)
    assert 0 < flips < 1
    assert averaged.protocol == {"model": "m", "option_orders": "cyclic"}
    assert averaged.labels.tolist() == [q.answer for q in questions]


def test_without_a_leaning_nothing_flips() -> None:
    questions = make_questions(25, seed=5, options=(2, 3, 4, 5))
    averaged, flips = average_over_orders(encoded(questions), encoded, leaning(0.0))
    assert flips == 0
    np.testing.assert_allclose(
        averaged.probs(), leaning(0.0)(encoded(questions)).probs(), rtol=1e-6, atol=1e-7
    )

"""Options in another order every epoch: the same question, its answer under another letter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_questions

from calib_core.data.questions import Question
from calib_core.scoring.questions import EncodedQuestions
from calib_core.training.orders import SPARE_TOKENS, CyclicOrders, rotated

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
    turned = rotated(question, shift)
    assert answers(turned) == answers(question)
    assert rotated(turned, n - shift % n) == question
    assert replace(turned, choices=choices, answer=question.answer) == question


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

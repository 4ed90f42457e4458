"""Options in several orders: a question turned round, and scores averaged over all its turns.

A model leans towards some letters. Averaged over the cyclic orders of a question's options, every option has
stood under every letter once, and the leaning cancels; how often the top option changes says how much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from calib_core.data.questions import Question
from calib_core.predictions.table import Predictions
from calib_core.scoring.questions import EncodedQuestions

REFERS_TO_PLACE = re.compile(
    r"\b[A-Z]\b\W+(and|or)\W+\(?[A-Z]\b"  # both A and C
    r"|\b(options?|answers?|choices?)\W+\(?[A-Z]\b"  # option B
    r"|\b(the|these)\W+(above|below|previous|preceding|other|others|first|last)\b",  # none of the above
    re.IGNORECASE,
)
"""Options of which one speaks of another by its letter or its place mean something else in another order."""


def may_turn(question: Question) -> bool:
    """Whether the question means the same with its options in another order."""
    return not any(map(REFERS_TO_PLACE.search, question.choices))


def turned(question: Question, shift: int) -> Question:
    """The question with its options moved `shift` places to the front, cyclically, and its answer with them.

    Example:
        >>> turned(Question(id="a", question="?", choices=("x", "y", "z"), answer=0), 1)
        Question(id='a', question='?', choices=('y', 'z', 'x'), answer=2, subject=None)
    """
    n = len(question.choices)
    shift %= n
    choices = question.choices[shift:] + question.choices[:shift]
    return replace(question, choices=choices, answer=(question.answer - shift) % n)


def average_over_orders(
    given: EncodedQuestions,
    encode: Callable[[Sequence[Question]], EncodedQuestions],
    score: Callable[[EncodedQuestions], Predictions],
) -> tuple[Predictions, float]:
    """Option probabilities averaged over the cyclic orders of each question's options, and the flip rate.

    A question with K options is scored K times; one whose options speak of each other's places, once.

    Args:
        given: the questions, with their options as they were given; any numbers of options, mixed.
        encode: encodes questions as `given` was encoded.
        score: scores questions, in their order.

    Returns:
        Predictions in the order given, with the logarithms of the mean probabilities as logits and the mean
        letter mass; and the share of questions whose top option is not the same in all their orders.
    """
    table = score(given)
    n, width = table.logits.shape
    orders = np.array([len(q.choices) if may_turn(q) else 1 for q in given.questions], dtype=np.int64)
    tops = table.top()
    flipped = np.zeros(n, dtype=bool)
    total = table.probs()
    mass = None if table.letter_mass is None else table.letter_mass.astype(np.float64)
    for shift in range(1, int(orders.max(initial=1))):
        rows = np.flatnonzero(orders > shift)
        part = score(encode([turned(given.questions[row], shift) for row in rows]))
        options = table.n_options[rows, None]
        columns = np.arange(part.logits.shape[1])[None, :]
        own = columns < options
        where = np.where(own, (columns + shift) % options, 0)
        np.add.at(total, (rows[:, None], where), np.where(own, part.probs(), 0.0))
        flipped[rows] |= (part.top() + shift) % table.n_options[rows] != tops[rows]
        if mass is not None and part.letter_mass is not None:
            mass[rows] += part.letter_mass
    with np.errstate(divide="ignore"):
        logits = np.log(total / orders[:, None])
    own = np.arange(width) < table.n_options[:, None]
    lowest = np.finfo(np.float32).min
    averaged = replace(
        table,
        logits=np.where(own, np.maximum(logits, lowest), -np.inf).astype(np.float32),
        letter_mass=None if mass is None else (mass / orders).astype(np.float32),
        protocol={**(table.protocol or {}), "option_orders": "cyclic"},
    )
    return averaged, float(flipped.mean()) if n else 0.0

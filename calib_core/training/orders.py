"""The fit fold epoch by epoch, with each question's options in another order every time.

A model that sees the right answer under one letter alone ties the question to that letter. Moved on by one
place an epoch, the answer comes under every letter in turn, and a pass over the fold costs what it
cost before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calib_core.data.questions import MAX_OPTIONS, Question
from calib_core.scoring.orders import may_turn, turned
from calib_core.scoring.questions import EncodedQuestions

SPARE_TOKENS = 32
"""Another order may be a few tokens longer: a question this close to the context keeps the one given."""


class CyclicOrders:
    """Encodes the fit fold for an epoch: question i in rotation `start_i + epoch`, so K epochs show all K.

    Args:
        given: the fold with its options as they were given.
        encode: encodes questions as `given` was encoded.
        context_tokens: the longest prompt that the model takes.
        seed: of the rotations that the first epoch begins with.
    """

    def __init__(
        self,
        given: EncodedQuestions,
        encode: Callable[[Sequence[Question]], EncodedQuestions],
        *,
        context_tokens: int,
        seed: int,
    ) -> None:
        self._given, self._encode = given, encode
        self._longest = context_tokens - SPARE_TOKENS
        self._starts = np.random.default_rng([seed, 1]).integers(0, MAX_OPTIONS, len(given))

    def __call__(self, epoch: int) -> EncodedQuestions:
        """The fold as epoch number `epoch`, counted from 0, trains on it; rows are those of `given`."""
        rows = zip(self._given.questions, self._given.input_ids, self._starts, strict=True)
        return self._encode(
            [
                turned(question, int(start) + epoch) if self._may_turn(question, len(ids)) else question
                for question, ids, start in rows
            ]
        )

    def _may_turn(self, question: Question, tokens: int) -> bool:
        return tokens <= self._longest and may_turn(question)

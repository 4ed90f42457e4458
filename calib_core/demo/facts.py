"""What a fact of the demonstration is: a question, its answer, and wrong answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact as a question, with its wrong answers.

    Attributes:
        key: Name of the fact, unique and the same in every run.
        about: Facts with the same one teach each other's answer, so they serve the same part.
        subject: What kind of fact it is.
        question: The question where options are given.
        open_question: The question where none are.
        statement: The fact as a sentence with `{answer}` in place of the answer.
        answer: The right answer.
        near: Hard wrong answers, and how often each is to be taken.
        far: Other wrong answers, for when the hard ones run out.
    """

    key: str
    about: str
    subject: str
    question: str
    open_question: str
    statement: str
    answer: str
    near: Mapping[str, float]
    far: Mapping[str, float] = field(default_factory=dict)


def stable_hash(text: str) -> int:
    """64 bits of SHA-256: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])

"""Multiple-choice questions: the record, its file format, and readers that refuse what they can't tell."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.errors import DataFormatError
from calib_core.files import whole_file

MIN_OPTIONS, MAX_OPTIONS = 2, 26  # one letter per option, A to Z

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.int32(), nullable=False),
        pa.field("subject", pa.string()),
    ]
)

_WHITESPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One multiple-choice question with one right answer.

    Attributes:
        id: Name of the question, unique within a data set.
        question: The question's text.
        choices: The options' texts, 2 to 26.
        answer: Index of the right option, from 0.
        subject: Topic for per-subject figures, or None.

    Raises:
        DataFormatError: the number of options or the answer is out of range.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str | None = None

    def __post_init__(self) -> None:
        if not MIN_OPTIONS <= len(self.choices) <= MAX_OPTIONS:
            raise DataFormatError(
                f"question {self.id!r}: {len(self.choices)} options; give {MIN_OPTIONS} to {MAX_OPTIONS}"
            )
        if not 0 <= self.answer < len(self.choices):
            raise DataFormatError(
                f"question {self.id!r}: answer {self.answer} is not an option's index; "
                f"give 0 to {len(self.choices) - 1}"
            )


def normalize_text(text: str) -> str:
    r"""Text as duplicates are compared: NFKC, case-folded, every run of white space one space.

    >>> normalize_text("  What\u00a0IS it? ")
    'what is it?'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return _WHITESPACE.sub(" ", text).strip()
    return " ".join(text.casefold().split())


def write_questions(questions: Iterable[Question], path: str | Path) -> None:
    """Write questions as Parquet (columns id, question, choices, answer, subject), whole or not at all."""
    rows = list(questions)
    table = pa.table(
        {
            "id": [q.id for q in rows],
            "question": [q.question for q in rows],
            "choices": [list(q.choices) for q in rows],
            "answer": [q.answer for q in rows],
            "subject": [q.subject for q in rows],
        },
        schema=SCHEMA,
    )
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def fingerprint(questions: Iterable[Question]) -> str:
    """Hex SHA-256 over the questions' content (ids included), whatever their order."""
    rows = sorted(
        json.dumps([q.id, q.question, q.choices, q.answer, q.subject], ensure_ascii=False) for q in questions
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()

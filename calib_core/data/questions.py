"""Multiple-choice questions: the record, its file format, and readers that refuse what they can't tell."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.data.converters import Draft, RowError
from calib_core.data.layouts import Layout, choose_layout
from calib_core.data.rows import (
    OnBadRow,
    Problem,
    ReadReport,
    check_on_bad_row,
    read_rows,
    refuse,
    unique_ids,
)
from calib_core.errors import DataFormatError
from calib_core.storage.files import whole_file

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


def read_questions(
    source: str | Path, *, preset: str = "auto", on_bad_row: OnBadRow = "refuse"
) -> tuple[list[Question], ReadReport]:
    """Read and check questions from a file or a hub data set.

    Rows that say the same (question, options and answer; case, white space and Unicode form don't count) are
    kept once. A question without an id gets one from a hash of its content.

    Args:
        source: A `.jsonl`, `.json`, `.csv`, `.tsv` (each also with `.gz`) or `.parquet` file, by its path or
            `gs://` URI, or a hub data set as `hf://owner/name[/config][:split]`.
        preset: A published set or layout of `calib_core.data.layouts`; "auto" tells it by the columns.
        on_bad_row: "refuse" the whole source if a row is bad, or "drop" bad rows and list them in the report.

    Returns:
        The questions in the source's order, and what was found.

    Raises:
        DataFormatError: the source can't be read, its columns are of no known layout, or rows are bad (all of
            them are named together).
        ConfigError: `preset` or `on_bad_row` is unknown, or the bucket of a `gs://` URI can't be read.
    """
    check_on_bad_row(on_bad_row)
    rows = read_rows(source)
    if not rows.columns:  # nothing parsed: what is wrong with the rows says more than their missing columns
        refuse(rows, rows.problems)
    layout, rows = choose_layout(rows, preset)
    convert = layout.converter(rows)
    problems = list(rows.problems)
    found: list[tuple[int, Question]] = []
    for number, row in rows.rows:
        try:
            draft = convert(row)
        except RowError as error:
            problems.append(Problem(number, error.field, str(error)))
            continue
        trouble = [Problem(number, field, message) for field, message in _faults(draft, layout)]
        problems += trouble
        if not trouble:
            found.append((number, _question(draft)))
    kept, n_duplicates = _settle(found, layout, rows.unit, problems)
    if on_bad_row == "refuse" or not kept:
        refuse(rows, problems)
    if not kept:
        raise DataFormatError(f"{rows.source}: no questions; give a source with at least one")
    report = ReadReport(
        source=rows.source,
        layout=layout.name,
        unit=rows.unit,
        n_rows=rows.n_rows,
        n_kept=len(kept),
        n_duplicates=n_duplicates,
        problems=tuple(sorted(problems, key=lambda problem: problem.row)),
    )
    return kept, report


def content_key(question: Question) -> tuple[str, tuple[str, ...]]:
    """What makes two questions the same: normalized text and set of normalized options."""
    return normalize_text(question.question), tuple(sorted(_comparable_options(question)))


def answer_key(question: Question) -> str:
    """The right option as `content_key` compares options: two equal questions agree where this is equal."""
    return _comparable_options(question)[question.answer]


def _comparable_options(question: Question) -> list[str]:
    """The options normalized, or as they are where they differ in case only, like "Bb" and "BB"."""
    options = [normalize_text(choice) for choice in question.choices]
    distinct = len(set(options)) == len(options)
    return options if distinct else [" ".join(choice.split()) for choice in question.choices]


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


def _settle(
    found: list[tuple[int, Question]], layout: Layout, unit: str, problems: list[Problem]
) -> tuple[list[Question], int]:
    """Questions without duplicates, and the number of those; contradictions are added to the problems."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[int, Question]]] = {}
    for number, question in found:
        groups.setdefault(content_key(question), []).append((number, question))
    kept: list[tuple[int, Question]] = []
    n_duplicates = 0
    for group in groups.values():
        if len({answer_key(question) for _, question in group}) > 1:
            numbers = [number for number, _ in group]
            for number in numbers:
                others = ", ".join(str(other) for other in numbers if other != number)
                message = (
                    f"same question and options as {unit} {others}, but another answer; keep the right one"
                )
                problems.append(Problem(number, layout.answer, message))
        else:
            kept.append(group[0])
            n_duplicates += len(group) - 1
    return unique_ids(sorted(kept, key=lambda pair: pair[0]), unit, problems), n_duplicates


def _question(draft: Draft) -> Question:
    """The question of a draft without faults."""
    text = draft.question.strip()
    choices = tuple(choice.strip() for choice in draft.choices)
    name = "" if draft.id is None else str(draft.id).strip()
    if not name:
        content = json.dumps([text, choices, draft.answer], ensure_ascii=False)
        name = "q-" + hashlib.sha256(content.encode()).hexdigest()[:16]
    subject = (draft.subject or "").strip() or None
    return Question(id=name, question=text, choices=choices, answer=draft.answer, subject=subject)


def _faults(draft: Draft, layout: Layout) -> list[tuple[str, str]]:
    """All that is wrong with a draft, as field and message."""
    faults = [(layout.question, fault) for fault in text_faults(draft.question)]
    if isinstance(draft.choices, list):
        faults += _choice_faults(draft.choices, layout.choices)
    else:
        faults.append((layout.choices, f"{_kind(draft.choices, 'a list')}; give a list of texts"))
    answer = draft.answer
    if answer is None:
        faults.append((layout.answer, "no answer; leave the row out, or give a part that has answers"))
    elif not isinstance(answer, int) or isinstance(answer, bool):
        faults.append((layout.answer, f"{answer!r} is not a whole number; give the right option's, from 0"))
    elif isinstance(draft.choices, list) and not 0 <= answer < len(draft.choices):
        faults.append((layout.answer, f"{answer} is out of range; give 0 to {len(draft.choices) - 1}"))
    if draft.subject is not None and not isinstance(draft.subject, str):
        faults.append(("subject", f"{_kind(draft.subject)}; give a text or nothing"))
    elif draft.subject is not None and not _is_unicode(draft.subject):
        faults.append(("subject", _NOT_UNICODE))
    return faults + [("id", fault) for fault in id_faults(draft.id)]


def _choice_faults(choices: list[Any], field: str) -> list[tuple[str, str]]:
    faults = []
    if not MIN_OPTIONS <= len(choices) <= MAX_OPTIONS:
        faults.append((field, f"{len(choices)} options; give {MIN_OPTIONS} to {MAX_OPTIONS}"))
    for place, choice in enumerate(choices):
        faults += [(field, f"option {place}: {fault}") for fault in text_faults(choice)]
    texts = [" ".join(choice.split()) for choice in choices if isinstance(choice, str)]
    if repeated := sorted({text for text in texts if text and texts.count(text) > 1}):
        faults.append((field, f"repeated option {', '.join(map(repr, repeated))}; give different ones"))
    return faults


def text_faults(value: Any) -> list[str]:
    """What is wrong with a value that should be a text with something in it."""
    if not isinstance(value, str):
        return [f"{_kind(value)}; give a text"]
    if not value.strip():
        return ["empty; give a text"]
    return [] if _is_unicode(value) else [_NOT_UNICODE]


def id_faults(value: Any) -> list[str]:
    """What is wrong with a row's id; none at all, a text and a number are all right."""
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        return [f"{_kind(value)}; give a text or nothing"]
    return [_NOT_UNICODE] if isinstance(value, str) and not _is_unicode(value) else []


_NOT_UNICODE = "holds half of a surrogate pair, which UTF-8 can't write; correct the text"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any, wanted: str = "a text") -> str:
    return "missing" if value is None else f"not {wanted} but {type(value).__name__}"

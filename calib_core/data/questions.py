"""Multiple-choice questions: the record, its file format, and readers that refuse what they can't tell."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.data.answers import MAX_OPTIONS, MIN_OPTIONS, Answered, answer_reader
from calib_core.data.converters import Draft, RowError
from calib_core.data.layouts import FIELDS, Layout, choose_layout, presets_of
from calib_core.data.reading import read_rows
from calib_core.data.rows import (
    NoRowsError,
    OnBadRow,
    Problem,
    ReadReport,
    Rows,
    check_on_bad_row,
    refuse,
    unique_ids,
)
from calib_core.data.texts import exact_text
from calib_core.data.values import id_faults, id_text, is_missing, kind, text_faults
from calib_core.errors import DataFormatError, listed, short
from calib_core.storage.files import whole_file

ANSWERS_KEY = b"calib.answers"
"""Metadata of the files that are written here: b"0", what their answers count from."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.int32(), nullable=False),
        pa.field("subject", pa.string()),
    ],
    metadata={ANSWERS_KEY: b"0"},
)


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


def read_questions(
    source: str | Path, *, preset: str = "auto", on_bad_row: OnBadRow = "refuse", name: str | None = None
) -> tuple[list[Question], ReadReport]:
    """Read and check questions from a file or a hub data set.

    Rows that say the same (question, options in any order, and answer; Unicode's NFC and white space don't
    count) are kept once. A question without an id gets one from a hash of its content.

    Args:
        source: A `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file (each may be packed with gzip), by its
            path or `gs://` URI, or a hub data set as `hf://owner/name[/config][:split]`.
        preset: A published set or layout of `calib_core.data.layouts`; "auto" tells it by the columns.
        on_bad_row: "refuse" the whole source if a row is bad, or "drop" bad rows and list them in the report.
        name: What messages call the source, where it isn't what the user gave.

    Returns:
        The questions in the source's order, and what was found.

    Raises:
        NoRowsError: the source holds no rows.
        DataFormatError: the source can't be read, its columns match no known layout, it can't be told what
            its answers mean, or rows are bad (all of them are counted together).
        ConfigError: `preset` or `on_bad_row` is unknown, or the bucket of a `gs://` URI can't be read.
    """
    check_on_bad_row(on_bad_row)
    rows = read_rows(source, fields=FIELDS, name=name)
    if not rows.rows:  # nothing parsed: what is wrong with the rows says more than their columns
        refuse(rows, rows.problems)
    layout, rows = choose_layout(rows, preset)
    problems = list(rows.problems)
    found = list(_questions(rows, layout, problems))
    kept, n_duplicates = _settle(found, layout, rows.unit, problems)
    if on_bad_row == "refuse" or not kept:
        refuse(rows, problems, can_drop=on_bad_row == "refuse")
    if not kept:
        raise NoRowsError(f"{rows.source}: no questions; give a source with at least one")
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
    """What makes two questions the same: exact text, and set of exact options."""
    return exact_text(question.question), tuple(sorted(map(exact_text, question.choices)))


def answer_key(question: Question) -> str:
    """The right option as `content_key` compares options: two equal questions agree where this is equal."""
    return exact_text(question.choices[question.answer])


def write_questions(questions: Iterable[Question], path: str | Path) -> None:
    """Write questions atomically as Parquet (columns id, question, choices, answer, subject)."""
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


def _questions(rows: Rows, layout: Layout, problems: list[Problem]) -> Iterator[tuple[int, Question]]:
    """The questions of the good rows, by their numbers; the others' faults are added to `problems`."""
    drafts: list[tuple[int, Draft]] = []
    bad: set[int] = set()
    convert = layout.converter(rows)
    for number, row in rows.rows:
        try:
            draft = convert(row)
        except RowError as error:
            problems.append(Problem(number, error.field, str(error)))
            continue
        if trouble := [Problem(number, field, message) for field, message in _faults(draft, layout)]:
            problems += trouble
            bad.add(number)
        drafts.append((number, draft))
    for number, draft, answer in _with_answers(drafts, rows, layout):
        if isinstance(answer, str):
            problems.append(Problem(number, layout.answer, answer))
        elif number not in bad:
            yield number, _question(draft, answer)


def _with_answers(
    drafts: list[tuple[int, Draft]], rows: Rows, layout: Layout
) -> Iterator[tuple[int, Draft, int | str]]:
    """The drafts, each with the index of its right option or with what is wrong with its answer."""

    def has_options(draft: Draft) -> bool:
        choices = draft.choices
        return (
            isinstance(choices, list) and len(choices) > 0 and all(isinstance(each, str) for each in choices)
        )

    read: Callable[[Answered], int | str] = attrgetter("value")  # where the converter has read it
    if layout.form is not None:
        read = answer_reader(
            [Answered(number, draft.answer, draft.choices) for number, draft in drafts if has_options(draft)],
            source=rows.source,
            unit=rows.unit,
            field=layout.answer,
            usual=layout.form,
            base=0 if rows.metadata.get(ANSWERS_KEY) == b"0" else layout.base,
            presets=presets_of(layout),
        )
    for number, draft in drafts:
        if is_missing(draft.answer):
            yield number, draft, "no answer; leave the row out, or give a part that has answers"
        elif has_options(draft):
            yield number, draft, read(Answered(number, draft.answer, draft.choices))
        # What is wrong with the options has been said.


def _settle(
    found: list[tuple[int, Question]], layout: Layout, unit: str, problems: list[Problem]
) -> tuple[list[Question], int]:
    """Questions without duplicates, and the number of those; contradictions are added to the problems."""
    first: dict[bytes, int] = {}
    rows_of: dict[int, list[int]] = {}
    for place, (_, question) in enumerate(found):
        key = hashlib.sha256(repr(content_key(question)).encode()).digest()
        if (earlier := first.setdefault(key, place)) != place:
            rows_of.setdefault(earlier, [earlier]).append(place)
    left_out: set[int] = set()
    n_duplicates = 0
    for places in rows_of.values():
        if len({answer_key(found[place][1]) for place in places}) == 1:
            left_out.update(places[1:])
            n_duplicates += len(places) - 1
            continue
        left_out.update(places)
        numbers = [found[place][0] for place in places]
        message = (
            f"the same question and options as {unit} {numbers[0]}, and {len(numbers):,} rows that "
            "ask it answer differently; keep the right one"
        )
        problems += [Problem(number, layout.answer, message) for number in numbers]
    kept = [pair for place, pair in enumerate(found) if place not in left_out]
    return unique_ids(kept, unit, problems), n_duplicates


def _question(draft: Draft, answer: int) -> Question:
    """The question of a draft without faults."""
    text = draft.question.strip()
    choices = tuple(choice.strip() for choice in draft.choices)
    name = id_text(draft.id)
    if not name:
        content = json.dumps([text, choices, answer], ensure_ascii=False)
        name = "q-" + hashlib.sha256(content.encode()).hexdigest()[:16]
    return Question(
        id=name, question=text, choices=choices, answer=answer, subject=id_text(draft.subject) or None
    )


def _faults(draft: Draft, layout: Layout) -> list[tuple[str, str]]:
    """All that is wrong with a draft but its answer, as field and message."""
    faults = [(layout.question, fault) for fault in text_faults(draft.question)]
    if isinstance(draft.choices, list):
        faults += [(layout.choices, fault) for fault in _choice_faults(draft.choices)]
    else:
        faults.append((layout.choices, f"{kind(draft.choices, 'a list')}; give a list of texts"))
    named = (("subject", draft.subject), ("id", draft.id))
    return faults + [(name, fault) for name, value in named for fault in id_faults(value)]


def _choice_faults(choices: list[Any]) -> list[str]:
    if not MIN_OPTIONS <= len(choices) <= MAX_OPTIONS:
        return [f"{len(choices)} options; give {MIN_OPTIONS} to {MAX_OPTIONS}"]
    faults = [
        f"option {place}: {fault}" for place, choice in enumerate(choices) for fault in text_faults(choice)
    ]
    if not faults:
        uses = Counter(map(exact_text, choices))
        repeated = [short(text, 40) for text, count in sorted(uses.items()) if count > 1]
        if repeated:
            faults.append(f"repeated option {listed(repeated)}; give different ones")
    return faults

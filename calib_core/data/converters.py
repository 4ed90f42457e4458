"""From a row of a published question set to the parts of a question, one function per column layout.

Each function here takes all rows of a source (some facts show in the whole file only) and returns the
function that converts one row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import PurePath
from string import ascii_uppercase
from typing import Any, NamedTuple

from calib_core.data.rows import Rows
from calib_core.data.values import id_text, is_missing, whole_number
from calib_core.errors import DataFormatError, listed, short
from calib_core.storage.json_text import JsonError, parse_json

Row = Mapping[str, Any]


class Draft(NamedTuple):
    """A row's parts as a question, not checked yet.

    `answer` is None if the source has none; else the right option's index, or, where the layout has a
    form of answers (`Layout.form`), what the file says, to be read when all rows are known.
    """

    id: Any
    question: Any
    choices: Any
    answer: Any
    subject: Any = None


class RowError(Exception):
    """A row does not have the shape of its layout."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def native(rows: Rows) -> Callable[[Row], Draft]:
    """The package's own columns: question, choices as a list (or its JSON text, as in CSV), the right one."""

    def convert(row: Row) -> Draft:
        choices = row.get("choices")
        if isinstance(choices, str) or rows.first_record:  # CSV, and what was made of one
            try:
                choices = parse_json(str(choices))
            except JsonError:
                raise RowError("choices", f'{short(choices)} is not a JSON list, as in ["a", "b"]') from None
        return Draft(row.get("id"), row.get("question"), choices, row.get("answer"), row.get("subject"))

    return convert


def in_columns(names: list[str]) -> Callable[[Rows], Callable[[Row], Draft]]:
    """One column for each option, choice0, choice1, ... or A, B, ..., and the right one."""

    def converter(rows: Rows) -> Callable[[Row], Draft]:
        there = set(rows.columns)
        used = list(takewhile(there.__contains__, names))
        subject = _mmlu_subject(rows.source)

        def convert(row: Row) -> Draft:
            choices = _filled(row, used)
            return Draft(
                row.get("id"), row.get("question"), choices, row.get("answer"), row.get("subject", subject)
            )

        return convert

    return converter


def labelled(question: str) -> Callable[[Rows], Callable[[Row], Draft]]:
    """Options as {"text": [...], "label": [...]} and the label of the right one."""

    def convert(row: Row) -> Draft:
        choices = row.get("choices")
        if not isinstance(choices, dict) or not all(
            isinstance(choices.get(k), list) for k in ("text", "label")
        ):
            raise RowError("choices", 'not of the form {"text": [...], "label": [...]}')
        texts, labels = choices["text"], choices["label"]
        if len(texts) != len(labels):
            raise RowError(
                "choices", f"{len(texts)} texts and {len(labels)} labels; give one label for each text"
            )
        answer = _index_of(row.get("answerKey"), labels, "answerKey")
        return Draft(row.get("id"), row.get(question), texts, answer, row.get("subject"))

    return lambda rows: convert


def nested(rows: Rows) -> Callable[[Row], Draft]:
    """Question as {"stem": ..., "choices": [{"text", "label"}, ...]} and the label of the right one."""

    def convert(row: Row) -> Draft:
        question = row.get("question")
        options = question.get("choices") if isinstance(question, dict) else None
        if (
            not isinstance(question, dict)
            or not isinstance(options, list)
            or not all(isinstance(option, dict) for option in options)
        ):
            form = '{"stem": ..., "choices": [{"text": ..., "label": ...}]}'
            raise RowError("question", f"not of the form {form}")
        labels = [option.get("label") for option in options]
        answer = _index_of(row.get("answerKey"), labels, "answerKey")
        return Draft(row.get("id"), question.get("stem"), [option.get("text") for option in options], answer)

    return convert


def marked(rows: Rows) -> Callable[[Row], Draft]:
    """Options in one text, "(A) x (B) y", and the letter of the right one."""

    def convert(row: Row) -> Draft:
        first, *pieces = re.split(r"\(([A-Z])\)", str(row.get("Choices")))
        letters, texts = pieces[::2], [text.strip() for text in pieces[1::2]]
        if first.strip() or letters != list(ascii_uppercase[: len(letters)]):
            marks = listed(letters, 30) or "nothing"
            raise RowError(
                "Choices", f"marked with {marks}; mark the options (A), (B), ... in order, once each"
            )
        answer = _index_of(row.get("Answer Key"), letters, "Answer Key")
        return Draft(row.get("ID"), row.get("Question Stem"), texts, answer)

    return convert


def sciq(rows: Rows) -> Callable[[Row], Draft]:
    """The right answer and three wrong ones by name; a hash of the texts draws their order."""
    names = ("correct_answer", "distractor1", "distractor2", "distractor3")

    def convert(row: Row) -> Draft:
        question = row.get("question")
        drawn = {name: f"{question}\n{row.get(name)}".encode(errors="replace") for name in names}
        order = sorted(names, key=lambda name: hashlib.sha256(drawn[name]).digest())
        answer = order.index("correct_answer") if row.get("correct_answer") else None
        return Draft(row.get("id"), question, [row.get(name) for name in order], answer)

    return convert


def medmcqa(base: int | None) -> Callable[[Rows], Callable[[Row], Draft]]:
    """Options opa to opd and `cop`, which counts from 1 in the original files and from 0 on the hub."""
    names = ("opa", "opb", "opc", "opd")

    def converter(rows: Rows) -> Callable[[Row], Draft]:
        start = _cop_base(rows) if base is None else base

        def convert(row: Row) -> Draft:
            cop = _cop(row)
            if cop is not None and not start <= cop < start + 4:
                raise RowError(
                    "cop", f"{short(cop)} is out of range; give {start} to {start + 3} (counted from {start})"
                )
            answer = None if cop is None else cop - start
            choices = [row.get(name) for name in names]
            return Draft(row.get("id"), row.get("question"), choices, answer, row.get("subject_name"))

        return convert

    return converter


def _cop_base(rows: Rows) -> int:
    """Where `cop` begins to count: only a 0 or a 4 in the file can tell.

    Raises:
        DataFormatError: the file holds both, or neither.
    """
    numbers: dict[int, int] = {}
    for number, row in rows.rows:
        try:
            cop = _cop(row)
        except RowError:
            continue  # said with the other problems of the row
        if cop is not None:
            numbers.setdefault(cop, number)
    if not numbers:
        return 0
    zero, four = numbers.get(0), numbers.get(4)
    if (zero is None) == (four is None):
        found = (
            "holds neither 0 nor 4"
            if zero is None
            else f"is 0 in {rows.unit} {zero} and 4 in {rows.unit} {four}"
        )
        raise DataFormatError(
            f"{rows.source}: column cop {found}, so it is ambiguous whether it counts from 0 "
            "(the hub's copy) or from 1 (the original files); choose the preset medmcqa-0 or medmcqa-1"
        )
    return 0 if four is None else 1


def _cop(row: Row) -> int | None:
    """The value of `cop`; None if there is no answer (-1 in the hub's test part)."""
    value = row.get("cop")
    cop = whole_number(value)
    if is_missing(value) or cop == -1:
        return None
    if cop is None:
        raise RowError("cop", f"{short(value)} is not a whole number")
    return cop


def _index_of(key: Any, labels: list[Any], field: str) -> int | None:
    """Index of the option with this label; None if there is no key."""
    if is_missing(key):
        return None
    names = [id_text(label) for label in labels]
    place = id_text(key)
    if names.count(place) != 1:
        raise RowError(field, f"{short(key)} is not one of the labels {listed(names, 30) or '(none)'}")
    return names.index(place)


def _filled(row: Row, names: list[str]) -> list[Any]:
    """The options in these columns; empty ones at the end stand for fewer options."""
    values = [row.get(name) for name in names]
    while values and is_missing(values[-1]):
        values.pop()
    return values


def _mmlu_subject(source: str) -> str | None:
    """MMLU's csv files bear their subject in the file's name: abstract_algebra_test.csv."""
    found = re.fullmatch(r"(.+)_(test|val|dev)", PurePath(source).name.partition(".")[0])
    return found and found[1]

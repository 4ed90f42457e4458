"""Rows of a predictions file as they were written, checked one by one before they fit into arrays."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib_core.data.answers import MAX_OPTIONS, MIN_OPTIONS, Answered, answer_reader
from calib_core.data.questions import Question
from calib_core.data.reading import read_rows
from calib_core.data.rows import NoRowsError, Problem, Rows, refuse
from calib_core.data.values import id_faults, id_text, is_missing, number, text_faults
from calib_core.errors import DataFormatError, listed, short
from calib_core.predictions.foreign import (
    FOREIGN_FIELDS,
    NOT_AMONG_TOP,
    SCORE_FIELDS,
    convert_rows,
    converter_for,
)
from calib_core.storage.json_text import JsonError, parse_json

PROTOCOL_KEY = b"calib.protocol"
NAME_FIELDS = ("subject", "group")
KNOWN_FIELDS = frozenset(("id", "label", "letter_mass", *NAME_FIELDS, *SCORE_FIELDS, *FOREIGN_FIELDS))
SUM_TOLERANCE = 1e-3
IMPOSSIBLE = -1e6
"""Log-probabilities below it stand for minus infinity: what masks are made of, as -1e9 or the least float32.

That of the longest option under the worst of models is above it.
"""
# A probability of exactly 0 has no finite logit. It stands for "below what float32 tells from 0", so it
# becomes the smallest normal float32, whose log is -87.3: every metric but the NLL of such a row is
# unaffected.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
LARGEST_LOGIT = float(np.finfo(np.float32).max)
_INFINITY = re.compile(r"-inf(?!\w)")
"""Minus infinity as Python prints it in a list."""


def read_prediction_rows(
    uri: str | os.PathLike[str], questions: Mapping[str, Question]
) -> tuple[list[dict[str, Any]], str, bool, dict[str, Any] | None]:
    """Read and check the rows of a predictions table, this package's own or another program's.

    Args:
        uri: a file, as `calib_core.data.reading.read_rows` takes it.
        questions: questions by id, for what the table leaves out of them; may be empty.

    Returns:
        The rows; the name of the field with option scores, one of `SCORE_FIELDS`; whether there is a letter
        mass; the protocol, if the file has one.

    Raises:
        DataFormatError: the file can't be read, a column is missing, or rows are wrong.
    """
    rows = read_rows(uri, fields=KNOWN_FIELDS)
    refuse(rows, rows.problems)
    if not rows.rows:
        raise NoRowsError(f"{rows.source}: the table has no rows; check how it was written")
    columns = set(rows.columns)
    if convert := converter_for(rows):
        converted, problems = convert_rows(rows, convert, questions)
        refuse(rows, problems)
        rows = converted
        columns = {"label"}.union(*(row for _, row in rows.rows))
    kind = _score_field(rows.source, columns)
    has_letter_mass = "letter_mass" in columns
    checked, problems = _checked(rows, kind, has_letter_mass)
    refuse(rows, problems)
    if questions:
        refuse(rows, _fill_from_questions(rows, checked, kind, questions))
    return checked, kind, has_letter_mass, _protocol(rows)


def _protocol(rows: Rows) -> dict[str, Any] | None:
    """How the predictions were made, as the file says."""
    text = rows.metadata.get(PROTOCOL_KEY)
    if not text:
        return None
    try:
        protocol = parse_json(text)
    except JsonError:
        protocol = None
    if not isinstance(protocol, dict):
        raise DataFormatError(
            f"{rows.source}: file metadata 'calib.protocol' isn't a JSON object; write the file again"
        )
    return protocol


def _score_field(source: str, columns: set[str]) -> str:
    missing = [field for field in ("id", "label") if field not in columns]
    if missing:
        raise DataFormatError(
            f"{source}: no column {' and '.join(missing)} (columns: {listed(sorted(columns))}); a "
            "predictions table must have it"
        )
    present = [field for field in SCORE_FIELDS if field in columns]
    if len(present) != 1:
        raise DataFormatError(
            f"{source}: exactly one of the columns {', '.join(SCORE_FIELDS)} is expected, found "
            f"{' and '.join(present) or 'none'}; rename or leave out columns"
        )
    return present[0]


def _checked(rows: Rows, kind: str, has_letter_mass: bool) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Rows with an id, a label, scores and names of the right types, and what is wrong with the others."""
    checked: list[dict[str, Any]] = []
    problems: list[Problem] = []
    scores: list[list[float]] = []
    first: dict[str, int] = {}
    for place, row in rows.rows:
        found = {name: _name(row.get(name)) for name in NAME_FIELDS if name in row}
        faults = [("id", fault) for fault in _id_faults(row.get("id"))]
        name = id_text(row.get("id"))
        if name and first.setdefault(name, place) != place:
            faults.append(
                ("id", f"{short(name)} is also the id of {rows.unit} {first[name]}; ids must be unique")
            )
        faults += [(name, fault) for name in found for fault in _name_faults(row.get(name))]
        values, fault = checked_scores(_from_text(row.get(kind)), kind)
        if fault:
            faults.append((kind, fault))
        mass = number(_from_text(row.get("letter_mass"))) if has_letter_mass else None
        if has_letter_mass and (mass is None or not 0 <= mass <= 1):
            faults.append(
                ("letter_mass", f"{short(row.get('letter_mass'))} where a share is expected, 0 to 1")
            )
        problems += [Problem(place, field, message) for field, message in faults]
        scores.append(values)
        checked.append(found | {"row": place, "id": name, kind: values, "letter_mass": mass})
    problems += _read_labels(rows, checked, scores)
    return checked, problems


def _read_labels(
    rows: Rows, checked: Sequence[dict[str, Any]], scores: Sequence[Sequence[float]]
) -> list[Problem]:
    """Give each row the index of its right option; None where the table has none."""
    answers = [
        Answered(place, row.get("label"), ("",) * len(values))
        for (place, row), values in zip(rows.rows, scores, strict=True)
    ]
    read = answer_reader(
        [answered for answered in answers if answered.choices],
        source=rows.source,
        unit=rows.unit,
        field="label",
        usual="number",
        base=0 if PROTOCOL_KEY in rows.metadata else None,
        presets=None,
    )
    problems = []
    for row, answered, (_, given) in zip(checked, answers, rows.rows, strict=True):
        row["label"] = None
        if "label" not in given:
            problems.append(
                Problem(answered.row, "label", "missing; give the right option's number, or null")
            )
        elif not is_missing(answered.value) and answered.choices:
            index = read(answered)
            if isinstance(index, str):
                problems.append(Problem(answered.row, "label", index))
            else:
                row["label"] = index
    return problems


def _fill_from_questions(
    rows: Rows, checked: Sequence[dict[str, Any]], kind: str, questions: Mapping[str, Question]
) -> list[Problem]:
    """Give rows their questions' answers and subjects; what doesn't fit the questions is returned."""
    problems: list[Problem] = []
    for row in checked:
        question = questions.get(row["id"])
        place, name = row["row"], short(row["id"])
        if question is None:
            problems.append(Problem(place, "id", f"{name} is not among the questions"))
        elif len(row[kind]) != len(question.choices):
            message = f"{len(row[kind])} values, but question {name} has {len(question.choices)} options"
            problems.append(Problem(place, kind, message))
        elif row["label"] not in (None, question.answer):
            message = f"{row['label']}, but the question's answer is {question.answer}"
            problems.append(Problem(place, "label", message))
        else:
            row["label"], row["subject"] = question.answer, row.get("subject") or question.subject
    return problems


def _id_faults(value: Any) -> list[str]:
    return ["missing; give each row its own"] if is_missing(value) else id_faults(value)


def _name(value: Any) -> str | None:
    """A subject or group as text; whole numbers are names too."""
    return id_text(value) or None


def _name_faults(value: Any) -> list[str]:
    if is_missing(value) or not id_faults(value):
        return []
    return text_faults(value) or id_faults(value)


def _from_text(value: Any) -> Any:
    """The number or list that a CSV's cell, or what was made of one, holds as JSON; else the value itself."""
    try:
        return parse_json(_INFINITY.sub("-Infinity", value)) if isinstance(value, str) else value
    except JsonError:
        return value


def checked_scores(values: Any, kind: str) -> tuple[list[float], str]:
    """A row's option scores, and why they can't be used (an empty text where they can)."""
    if not isinstance(values, list):
        return [], f"{short(values)} where a list of numbers is expected"
    if not MIN_OPTIONS <= len(values) <= MAX_OPTIONS:
        return [], f"{len(values)} options where {MIN_OPTIONS} to {MAX_OPTIONS} are expected"
    numbers = [_score(value) for value in values]
    known = [value for value in numbers if value is not None]
    if len(known) < len(numbers):
        return [], f"{short(values)} where a list of numbers is expected"
    return known, _RANGE_FAULTS[kind](known)


def _score(value: Any) -> float | None:
    """A number; minus infinity also as the text that JSON has for it."""
    return -math.inf if value in ("-Infinity", "-inf") else number(value)


def _logits_fault(values: list[float]) -> str:
    finite = all(abs(value) <= LARGEST_LOGIT for value in values)
    return "" if finite else f"{short(values)} holds NaN, an infinity, or what float32 cannot represent"


def _logprobs_fault(values: list[float]) -> str:
    if any(math.isnan(value) or value == math.inf for value in values):
        return f"{short(values)} holds NaN or an infinity"
    if NOT_AMONG_TOP in values:
        return (
            f"{NOT_AMONG_TOP} stands for an option that is not among the top candidates, whose "
            "log-probability isn't known; ask for more candidates, or for the letters' own (nothing "
            "is ever filled in)"
        )
    if max(values) > SUM_TOLERANCE:
        return f"{max(values):g} is above 0, so it can't be the log of a probability; are these logits?"
    return "" if max(values) > IMPOSSIBLE else f"{short(values)}: no finite log-probability"


def _probs_fault(values: list[float]) -> str:
    if not all(map(math.isfinite, values)):
        return f"{short(values)} holds NaN or an infinity"
    if min(values) < 0 or max(values) > 1:
        return f"{short(values)} has values outside [0, 1]; are these logits?"
    if abs(sum(values) - 1) > SUM_TOLERANCE:
        return f"the options' probabilities sum to {sum(values):.6g}, not to 1"
    return ""


_RANGE_FAULTS = {"logits": _logits_fault, "logprobs": _logprobs_fault, "probs": _probs_fault}


def to_logits(values: list[float], kind: str) -> NDArray[np.float64]:
    """A row's option scores as float64 logits (K,); those made from `logprobs` and `probs` are normalised."""
    array = np.array(values, dtype=np.float64)
    if kind == "logits":
        return array
    smallest = np.log(SMALLEST_PROBABILITY)
    if kind == "probs":
        array = np.log(np.maximum(array / array.sum(), SMALLEST_PROBABILITY))
    else:
        # An impossible option: as with a probability of 0. Other values stay, however small.
        impossible = array < IMPOSSIBLE
        array = array - np.logaddexp.reduce(array[~impossible])
        array[impossible] = smallest
    return array - np.logaddexp.reduce(array)

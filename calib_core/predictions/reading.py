"""Rows of a predictions file as they were written, checked one by one before they fit into arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from calib_core.data.questions import Question
from calib_core.errors import DataFormatError, short
from calib_core.predictions.foreign import convert_rows, converter_for

MIN_OPTIONS, MAX_OPTIONS = 2, 26
PROTOCOL_KEY = b"calib.protocol"
KNOWN_FIELDS = ("id", "label", "letter_mass", "subject", "group")
VALUE_FIELDS = ("logits", "logprobs", "probs")
PARQUET_MAGIC = b"PAR1"
SHOWN_PROBLEMS = 20
SUM_TOLERANCE = 1e-3
# A probability of exactly 0 has no finite logit. It stands for "below what float32 tells from 0", so it
# becomes the smallest normal float32, whose log is -87.3: every metric but the NLL of such a row is
# unaffected.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


def read_rows(
    path: Path, questions: Mapping[str, Question]
) -> tuple[list[dict[str, Any]], str, bool, dict[str, Any] | None]:
    """Read and check the rows of a predictions table, this package's own or another program's.

    Args:
        path: a Parquet or JSON lines file, told by its ending or else by its first bytes.
        questions: questions by id, for what the table leaves out of them; may be empty.

    Returns:
        The rows; the name of the field with option scores, one of `VALUE_FIELDS`; whether there is a letter
        mass; the protocol, if the file has one.

    Raises:
        DataFormatError: the file can't be read, a column is missing, or rows are wrong.
    """
    if not path.is_file():
        raise DataFormatError(f"{path}: no such file; check the path")
    ending = path.suffix if path.suffix in (".parquet", ".jsonl") else _ending_by_content(path)
    rows, columns, protocol = _read_parquet(path) if ending == ".parquet" else _read_jsonl(path)
    if not rows:
        raise DataFormatError(f"{path}: the table has no rows; check how it was written")
    if convert := converter_for(columns):
        rows, problems = convert_rows(rows, convert, questions)
        refuse(str(path), problems)
        columns = set().union(*rows)
    kind = _value_field(path, columns)
    has_letter_mass = "letter_mass" in columns
    refuse(str(path), _row_problems(rows, kind, has_letter_mass))
    if questions:
        refuse(str(path), _fill_from_questions(rows, kind, questions))
    return rows, kind, has_letter_mass, protocol


def refuse(source: str, problems: Sequence[tuple[int, str, str]]) -> None:
    """Raise one error for all problems (row from 0, field, message), if there are any."""
    if not problems:
        return
    shown = [f"  row {row + 1}, field '{field}': {text}" for row, field, text in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more")
    raise DataFormatError(
        f"{source}: {len(problems)} problems; mend or leave out these rows:\n" + "\n".join(shown)
    )


def _ending_by_content(path: Path) -> str:
    """The ending of a file whose name has none that tells, as KFP names artifacts and Vertex its outputs."""
    with path.open("rb") as stream:
        start = stream.read(len(PARQUET_MAGIC))
    if start == PARQUET_MAGIC:
        return ".parquet"
    if start[:1] == b"{":
        return ".jsonl"
    raise DataFormatError(f"{path}: unknown file type {path.suffix!r}; give a .parquet or .jsonl table")


def _read_parquet(path: Path) -> tuple[list[dict[str, Any]], set[str], dict[str, Any] | None]:
    try:
        with pq.ParquetFile(path) as file:
            known = {"id", "label", "letter_mass", "subject", "group", *VALUE_FIELDS} & set(
                file.schema_arrow.names
            )
            table = file.read(columns=sorted(known))
    except (pa.ArrowException, OSError) as error:
        raise DataFormatError(f"{path}: not a readable Parquet file ({error}); write it anew") from None
    protocol = None
    if text := (table.schema.metadata or {}).get(PROTOCOL_KEY):
        try:
            protocol = json.loads(text)
        except ValueError:
            protocol = None
        if not isinstance(protocol, dict):
            raise DataFormatError(
                f"{path}: file metadata 'calib.protocol' isn't a JSON object; write the file anew"
            )
    return table.to_pylist(), known, protocol


def _read_jsonl(path: Path) -> tuple[list[dict[str, Any]], set[str], None]:
    rows: list[dict[str, Any]] = []
    try:
        # Not splitlines, which would also split at U+2028 inside strings.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8") from None
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            _bad_line(path, number, f"not valid JSON ({error})")
        if not isinstance(row, dict):
            _bad_line(path, number, "not a JSON object")
        rows.append(row)
    return rows, set().union(*rows), None


def _bad_line(path: Path, number: int, message: str) -> NoReturn:
    raise DataFormatError(f"{path}: row {number}: {message}; write one JSON object per line")


def _value_field(path: Path, columns: set[str]) -> str:
    missing = [field for field in ("id", "label") if field not in columns]
    if missing:
        raise DataFormatError(f"{path}: no column {' and '.join(missing)}; a predictions table must have it")
    present = [field for field in VALUE_FIELDS if field in columns]
    if len(present) != 1:
        raise DataFormatError(
            f"{path}: exactly one of the columns {', '.join(VALUE_FIELDS)} is expected, found "
            f"{' and '.join(present) or 'none'}; rename or leave out columns"
        )
    return present[0]


def _row_problems(
    rows: Sequence[dict[str, Any]], kind: str, has_letter_mass: bool
) -> list[tuple[int, str, str]]:
    """What is wrong with rows as read, before they fit into arrays."""
    problems: list[tuple[int, str, str]] = []
    for index, row in enumerate(rows):
        if not isinstance(row.get("id"), str):
            problems.append((index, "id", f"{row.get('id')!r} where a string is expected"))
        label = row.get("label")
        if "label" not in row or (
            label is not None and (type(label) is not int or not 0 <= label < MAX_OPTIONS)
        ):
            problems.append(
                (index, "label", f"{label!r} where an option's number, from 0, or null is expected")
            )
        if message := value_problem(row.get(kind), kind):
            problems.append((index, kind, message))
        if has_letter_mass and not _is_number(row.get("letter_mass")):
            problems.append((index, "letter_mass", f"{row.get('letter_mass')!r} where a number is expected"))
    return problems


def _fill_from_questions(
    rows: Sequence[dict[str, Any]], kind: str, questions: Mapping[str, Question]
) -> list[tuple[int, str, str]]:
    """Give rows their questions' answers and subjects; what doesn't fit the questions is returned."""
    problems: list[tuple[int, str, str]] = []
    for index, row in enumerate(rows):
        question = questions.get(row["id"])
        if question is None:
            problems.append((index, "id", f"{row['id']!r} is not among the questions"))
        elif len(row[kind]) != len(question.choices):
            message = (
                f"{len(row[kind])} values, but question {row['id']!r} has {len(question.choices)} options"
            )
            problems.append((index, kind, message))
        elif row["label"] not in (None, question.answer):
            problems.append(
                (index, "label", f"{row['label']}, but the question's answer is {question.answer}")
            )
        else:
            row["label"], row["subject"] = question.answer, row.get("subject") or question.subject
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_problem(values: object, kind: str) -> str:
    """Why a row's list of option scores can't be used, or an empty string."""
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        return f"{short(values)} where a list of numbers is expected"
    if not MIN_OPTIONS <= len(values) <= MAX_OPTIONS:
        return f"{len(values)} options where {MIN_OPTIONS} to {MAX_OPTIONS} are expected"
    if not all(math.isfinite(value) for value in values):
        return f"{short(values)} holds NaN or an infinity"
    return _RANGE_PROBLEMS[kind](values)


def _logprobs_problem(values: list[float]) -> str:
    if max(values) <= SUM_TOLERANCE:
        return ""
    return f"{max(values):g} is above 0, so it can't be the log of a probability; are these logits?"


def _probs_problem(values: list[float]) -> str:
    if min(values) < 0 or max(values) > 1:
        return f"{short(values)} has values outside [0, 1]; are these logits?"
    if abs(sum(values) - 1) > SUM_TOLERANCE:
        return f"the options' probabilities sum to {sum(values):.6g}, not to 1"
    return ""


_RANGE_PROBLEMS = {"logits": lambda values: "", "logprobs": _logprobs_problem, "probs": _probs_problem}


def to_logits(values: list[float], kind: str) -> NDArray[np.float64]:
    """A row's option scores as float64 logits (K,); those made from `logprobs` and `probs` are normalised."""
    array = np.array(values, dtype=np.float64)
    if kind == "logits":
        return array
    if kind == "probs":
        array = np.log(np.maximum(array / array.sum(), SMALLEST_PROBABILITY))
    return array - np.logaddexp.reduce(array)

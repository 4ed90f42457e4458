"""Rows out of a source, not yet understood, and the report on what was wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from calib_core.data.record import SourceRecord
from calib_core.errors import NAMED, ConfigError, DataFormatError, listed

OnBadRow = Literal["refuse", "drop"]
Unit = Literal["line", "row"]
ROWS_NAMED = 5
"""How many rows a complaint names; all are counted."""
PROBLEMS_RECORDED = 1000
"""How many problems a report lists; all are counted."""


class NoRowsError(DataFormatError):
    """A source is as it should be, but holds no rows."""


class HasId(Protocol):
    """A record with a name of its own."""

    @property
    def id(self) -> str:
        """The name."""


Named = TypeVar("Named", bound=HasId)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a row.

    Attributes:
        row: The line of a text file on which the row begins, else the row's number, from 1.
        field: Name of the field in the source; "" where the row as a whole is meant.
        message: What is wrong, and what is right.
    """

    row: int
    field: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What was found in one source.

    Attributes:
        source: The file or hub id.
        layout: The column layout that it was read as.
        unit: What `Problem.row` counts: "line" or "row".
        n_rows: Rows of data in the source.
        n_kept: Rows that came out.
        n_duplicates: Rows left out because another one says the same.
        problems: What was wrong with the rows that were dropped.
    """

    source: str
    layout: str
    unit: Unit
    n_rows: int
    n_kept: int
    n_duplicates: int
    problems: tuple[Problem, ...] = ()

    @property
    def n_dropped(self) -> int:
        """Number of rows dropped because something was wrong with them."""
        return len({problem.row for problem in self.problems})

    def to_dict(self) -> SourceRecord:
        """The report as JSON values, with the first 1,000 problems."""
        return {
            "source": self.source,
            "layout": self.layout,
            "unit": self.unit,
            "n_rows": self.n_rows,
            "n_kept": self.n_kept,
            "n_duplicates": self.n_duplicates,
            "problems": [asdict(problem) for problem in self.problems[:PROBLEMS_RECORDED]],
            "n_dropped": self.n_dropped,
        }


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A source's rows, not yet understood.

    Attributes:
        source: The file or hub id.
        unit: What a row's number counts: "line" or "row".
        columns: Names of all fields, in order of appearance.
        rows: Each row's number and its fields.
        problems: Rows that could not even be split into fields; they are not among `rows`.
        first_record: A CSV's first record, in case that it is data and no header.
        metadata: A Parquet file's own metadata.
    """

    source: str
    unit: Unit
    columns: tuple[str, ...]
    rows: Sequence[tuple[int, Mapping[str, Any]]]
    problems: tuple[Problem, ...] = ()
    first_record: tuple[str, ...] = ()
    metadata: Mapping[bytes, bytes] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Rows of data in the source, readable or not."""
        return len(self.rows) + len({problem.row for problem in self.problems})

    def with_columns(self, columns: tuple[str, ...]) -> Rows:
        """The same rows of a CSV file that has no header: its first record becomes data."""
        names = dict(zip(self.columns, columns, strict=True))
        rows = [(number, {names[key]: value for key, value in row.items()}) for number, row in self.rows]
        first = (1, dict(zip(columns, self.first_record, strict=True)))
        return Rows(
            source=self.source,
            unit=self.unit,
            columns=columns,
            rows=(first, *rows),
            problems=self.problems,
        )


def check_on_bad_row(on_bad_row: str) -> None:
    """Refuse an unknown way to treat bad rows.

    Raises:
        ConfigError: it is neither "refuse" nor "drop".
    """
    if on_bad_row not in ("refuse", "drop"):
        raise ConfigError(f"on_bad_row is {on_bad_row!r}; give one of 'refuse', 'drop'")


def refuse(rows: Rows, problems: Iterable[Problem], *, can_drop: bool = False) -> None:
    """Raise all problems of a source as one error.

    A complaint that many rows share is made once, with their count; the first 20 are spelled out.

    Args:
        rows: The source.
        problems: What is wrong with its rows.
        can_drop: Whether the reader leaves bad rows out where it is asked to.

    Raises:
        DataFormatError: there is at least one problem.
    """
    found = sorted(problems, key=lambda problem: problem.row)
    if not found:
        return
    shown, more = said_once(found, rows.unit)
    n_bad = len({problem.row for problem in found})
    some_are_good = n_bad < rows.n_rows
    raise DataFormatError(
        f"{rows.source}: {n_bad} of {rows.n_rows} rows are bad, {len(found)} problem(s)"
        + (f" ({len(shown) + more} different ones, the first {len(shown)} shown)" if more else "")
        + ":\n"
        + "\n".join(shown)
        + "\nCorrect these rows"
        + (", or leave them out with `on_bad_row=drop`." if can_drop and some_are_good else ".")
    )


def said_once(problems: Iterable[Problem], unit: str) -> tuple[list[str], int]:
    """A line for each complaint with the rows that share it, and how many more complaints there are.

    Args:
        problems: What is wrong with the rows.
        unit: What a row's number counts.
    """
    complaints: dict[tuple[str, str], list[int]] = {}
    for problem in problems:
        complaints.setdefault((problem.field, problem.message), []).append(problem.row)
    lines = [
        f"  {unit}{'s' * (len(numbers) > 1)} {listed(numbers, ROWS_NAMED)}{name and f', {name}'}: {message}"
        for (name, message), numbers in list(complaints.items())[:NAMED]
    ]
    return lines, len(complaints) - len(lines)


def unique_ids(found: Iterable[tuple[int, Named]], unit: str, problems: list[Problem]) -> list[Named]:
    """The records of numbered rows; one whose id another has before it becomes a problem instead."""
    first: dict[str, int] = {}
    unique = []
    for number, record in found:
        if record.id in first:
            name = ascii(record.id[:80])
            message = f"{name} is also the id of {unit} {first[record.id]}; give each row its own"
            problems.append(Problem(number, "id", message))
        else:
            first[record.id] = number
            unique.append(record)
    return unique

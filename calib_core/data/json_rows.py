"""Rows out of JSON: one object a line, or a list of objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from calib_core.data.rows import NoRowsError, Problem, Rows, Unit
from calib_core.data.source import Source
from calib_core.errors import DataFormatError
from calib_core.storage.json_text import JsonError, parse_json, parse_json_list
from calib_core.storage.limits import COLUMNS, ROWS


class RowsOfObjects:
    """Collects rows that should be objects with fields, and keeps the fields that are asked for.

    Args:
        source: The file or hub id.
        unit: What a row's number counts.
        fields: Names of the fields to keep; all where it is None.
    """

    def __init__(self, source: str, unit: Unit, fields: Collection[str] | None) -> None:
        self._source, self._unit = source, unit
        self._fields = None if fields is None else frozenset(fields)
        self._columns: dict[str, None] = {}
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self._problems: list[Problem] = []
        self._max_rows = ROWS.value()

    def add(self, number: int, value: Any) -> None:
        """Add a row.

        Raises:
            DataFormatError: there are more rows or columns than the limits `rows` and `columns`.
        """
        if not isinstance(value, dict):
            self.add_problem(number, f"not an object with fields but {type(value).__name__}")
            return
        if not value.keys() <= self._columns.keys():
            self._columns.update(dict.fromkeys(value))
            COLUMNS.check(len(self._columns), self._source)
        if self._fields is not None:
            value = {name: each for name, each in value.items() if name in self._fields}
        self._rows.append((number, value))
        self._check_rows()

    def add_problem(self, number: int, message: str) -> None:
        """Add a row that can't be read."""
        self._problems.append(Problem(number, "", message))
        self._check_rows()

    def finish(self, metadata: dict[bytes, bytes] | None = None) -> Rows:
        """All rows.

        Raises:
            NoRowsError: there are none.
        """
        if not self._rows and not self._problems:
            raise NoRowsError(f"{self._source}: no rows; give a source with at least one")
        return Rows(
            source=self._source,
            unit=self._unit,
            columns=tuple(self._columns),
            rows=self._rows,
            problems=tuple(self._problems),
            metadata=metadata or {},
        )

    def _check_rows(self) -> None:
        n_rows = len(self._rows) + len(self._problems)
        if n_rows > self._max_rows:
            ROWS.check(n_rows, self._source)


def read_json_rows(source: Source, fields: Collection[str] | None) -> Rows:
    """Rows of a file of JSON lines or of a JSON list, told by its first character.

    Raises:
        NoRowsError: the file holds no rows.
        DataFormatError: it can't be read, is no valid JSON list, or is beyond a limit.
    """
    if _is_list(source):
        return _read_list(source, fields)
    found = RowsOfObjects(source.name, "line", fields)
    for number, line, fault in source.lines():
        text = line.lstrip("\ufeff")  # files put together keep the mark of each
        if fault:
            found.add_problem(number, fault.message)
        elif text.strip():
            try:
                found.add(number, parse_json(text))
            except JsonError as error:
                problem = str(error)
                if text.strip() == "{":
                    problem = (
                        "the object goes on in the next line; write each row as one line, or all as a list"
                    )
                found.add_problem(number, f"not JSON: {problem}")
    return found.finish()


def _is_list(source: Source) -> bool:
    """Whether the first character that isn't white space opens a list."""
    for chunk in source.chunks():
        if text := chunk.lstrip():
            return text.startswith(b"[")
    return False


def _read_list(source: Source, fields: Collection[str] | None) -> Rows:
    data = source.content()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DataFormatError(
            f"{source.name}: byte {error.start}: not UTF-8 (0x{data[error.start]:02x}); save the file "
            "as UTF-8"
        ) from None
    del data
    found = RowsOfObjects(source.name, "row", fields)
    try:
        for number, value in enumerate(parse_json_list(text), start=1):
            found.add(number, value)
    except JsonError as error:
        raise DataFormatError(f"{source.name}: not valid JSON ({error}); correct the file") from None
    return found.finish()


def rows_of(source: str, values: Iterable[Any], fields: Collection[str] | None, unit: Unit = "row") -> Rows:
    """Rows out of values that are parsed already, numbered from 1."""
    found = RowsOfObjects(source, unit, fields)
    for number, value in enumerate(values, start=1):
        found.add(number, value)
    return found.finish()

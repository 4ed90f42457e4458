"""Rows out of CSV and TSV files."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from calib_core.data.rows import NoRowsError, Problem, Rows
from calib_core.data.source import Source
from calib_core.errors import DataFormatError
from calib_core.storage.limits import COLUMNS, LINE_BYTES, ROWS

Record = tuple[int, int, list[str]]
"""First line, last line and fields of a record."""


class _QuoteError(DataFormatError):
    """Quotes of a file don't work out."""


def read_delimited_rows(source: Source) -> Rows:
    """Rows of a CSV or TSV file whose first record is its header.

    Raises:
        NoRowsError: the file is empty.
        DataFormatError: it can't be read, quotes don't work out, or it is beyond a limit.
    """
    undecodable: dict[int, Problem] = {}
    with _long_fields():
        read = _tsv_records if source.kind == "tsv" else _csv_records
        records = read(source, undecodable)
    if not records:
        raise NoRowsError(f"{source.name}: the file is empty; give a file with rows")
    if 1 in undecodable:
        raise DataFormatError(f"{source.name}: line 1: {undecodable[1].message}")
    (_, _, first), *body = records
    COLUMNS.check(len(first), f"{source.name}: line 1")
    # A file without a header may have an option twice in its first record: columns are told apart by place.
    names = [name.strip() for name in first]
    uses = Counter(names)
    columns = [f"{name}#{i}" if uses[name] > 1 else name for i, name in enumerate(names, start=1)]
    rows, problems = [], []
    for start, end, record in body:
        bad = (
            [undecodable[line] for line in range(start, end + 1) if line in undecodable]
            if undecodable
            else []
        )
        if bad:
            problems.append(Problem(start, "", bad[0].message))
        elif len(record) != len(columns):
            problems.append(Problem(start, "", f"{len(record)} fields; the first line has {len(columns)}"))
        else:
            rows.append((start, dict(zip(columns, record, strict=True))))
    return Rows(
        source=source.name,
        unit="line",
        columns=tuple(columns),
        rows=rows,
        problems=tuple(problems),
        first_record=tuple(first),
    )


def _csv_records(source: Source, undecodable: dict[int, Problem]) -> list[Record]:
    """Commas separate fields; semicolons or tabs do where the first record has no comma outside quotes."""
    first = next((line for _, line, _ in source.lines() if line.strip()), "")
    counts = {delimiter: _n_fields(first, delimiter) for delimiter in ",;\t"}
    delimiter = "," if counts[","] > 1 else max(counts, key=lambda each: counts[each])
    return _records(source, delimiter, undecodable)


def _tsv_records(source: Source, undecodable: dict[int, Problem]) -> list[Record]:
    """TSV comes with quoting (spreadsheets) and without: quotes count where they work out in every record."""
    try:
        records = _records(source, "\t", undecodable)
        if len({len(record) for _, _, record in records}) == 1:
            return records
    except _QuoteError:
        pass
    return _records(source, "\t", undecodable, quoted=False)


def _records(
    source: Source, delimiter: str, undecodable: dict[int, Problem], *, quoted: bool = True
) -> list[Record]:
    """Every record but blank ones; lines that aren't UTF-8 are entered in `undecodable`."""

    def lines() -> Iterator[str]:
        for number, line, problem in source.lines():
            if problem:
                undecodable[number] = problem
            yield line + "\n"

    reader = csv.reader(
        lines(), strict=True, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )
    records, start = [], 1
    try:
        for record in reader:
            if any(map(str.strip, record)):
                records.append((start, reader.line_num, record))
                if len(records) > ROWS.value():
                    ROWS.check(len(records), source.name)
            start = reader.line_num + 1
    except csv.Error as error:
        wrong = "a quote may be missing or too many there"
        if "field limit" in str(error):
            raise _QuoteError(f"{source.name}: line {start}: {LINE_BYTES.exceeded()}; or {wrong}") from None
        raise _QuoteError(f"{source.name}: line {start}: not valid CSV ({error}); {wrong}") from None
    return records


def _n_fields(line: str, delimiter: str) -> int:
    """How many fields a header line has; a quoted one may go on in the next line."""
    return len(next(csv.reader([line], delimiter=delimiter), []))


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields be as long as the limit `line_bytes`; csv's own limit is 131,072 characters."""
    before = csv.field_size_limit(LINE_BYTES.value())
    try:
        yield
    finally:
        csv.field_size_limit(before)

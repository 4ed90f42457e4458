"""Raw rows out of files and hub data sets, and the report on what was wrong with them."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.errors import ConfigError, DataFormatError
from calib_core.storage.uris import fetch

OnBadRow = Literal["refuse", "drop"]
HUB_PREFIX = "hf://"
FILE_TYPES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # all but Parquet also with .gz at the end
_PROBLEMS_SHOWN = 20


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
    unit: Literal["line", "row"]
    n_rows: int
    n_kept: int
    n_duplicates: int
    problems: tuple[Problem, ...] = ()

    @property
    def n_dropped(self) -> int:
        """Number of rows dropped because something was wrong with them."""
        return len({problem.row for problem in self.problems})

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {
            "problems": [asdict(problem) for problem in self.problems],
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
    """

    source: str
    unit: Literal["line", "row"]
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Mapping[str, Any]], ...]
    problems: tuple[Problem, ...] = ()
    first_record: tuple[str, ...] = field(default=())

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


def read_rows(source: str | Path) -> Rows:
    """Read every row of a file, by path or `gs://` URI, or of a hub data set `hf://owner/name[/config][:split]`.

    Raises:
        ConfigError: the URI can't be reached; see `calib_core.storage.uris.fetch`.
        DataFormatError: there is no such file, its type is unknown, it is damaged or empty, or the hub can't
            be reached. A row that can't be read is no error yet: it is listed in `problems`.
    """
    name = str(source)
    if name.startswith(HUB_PREFIX):
        return _from_records(name, "row", list(enumerate(_hub_records(name), start=1)))
    path = PurePath(source)
    compressed = path.suffix.lower() == ".gz"
    suffix = PurePath(path.stem).suffix.lower() if compressed else path.suffix.lower()
    if suffix not in FILE_TYPES or (compressed and suffix == ".parquet"):
        raise DataFormatError(
            f"{name}: unknown file type; give a file that ends in {', '.join(FILE_TYPES)} "
            f"(text files also with .gz), or a hub data set as {HUB_PREFIX}owner/name[/config][:split]"
        )
    data = _file_bytes(fetch(source), compressed)
    if suffix == ".parquet":
        return _from_parquet(name, data)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataFormatError(f"{name}: byte 0: this is UTF-16; save the file as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise DataFormatError(f"{name}: the file is empty; give a file with rows")
    if suffix in (".csv", ".tsv"):
        return _from_delimited(name, suffix[1:], data)
    if data.lstrip().startswith(b"["):
        return _from_json_list(name, data)
    return _from_json_lines(name, data)


def check_on_bad_row(on_bad_row: str) -> None:
    """Refuse an unknown way to treat bad rows.

    Raises:
        ConfigError: it is neither "refuse" nor "drop".
    """
    if on_bad_row not in ("refuse", "drop"):
        raise ConfigError(f"on_bad_row is {on_bad_row!r}; give one of 'refuse', 'drop'")


def refuse(rows: Rows, problems: Iterable[Problem]) -> None:
    """Raise all problems of a source as one error, the first 20 of them spelled out.

    Raises:
        DataFormatError: there is at least one problem.
    """
    found = sorted(problems, key=lambda problem: problem.row)
    if not found:
        return
    n_bad = len({problem.row for problem in found})
    shown = [
        f"  {rows.unit} {problem.row}{problem.field and f', {problem.field}'}: {problem.message}"
        for problem in found[:_PROBLEMS_SHOWN]
    ]
    more = len(found) - len(shown)
    raise DataFormatError(
        f"{rows.source}: {n_bad} of {rows.n_rows} rows are bad, {len(found)} problem(s)"
        + (f" (the first {len(shown)} shown)" if more else "")
        + ":\n"
        + "\n".join(shown)
        + "\nCorrect these rows, or leave them out with on_bad_row='drop'."
    )


def unique_ids(found: Iterable[tuple[int, Named]], unit: str, problems: list[Problem]) -> list[Named]:
    """The records of numbered rows; one whose id another has before it becomes a problem instead."""
    first: dict[str, int] = {}
    unique = []
    for number, record in found:
        if record.id in first:
            message = f"{record.id!r} is also the id of {unit} {first[record.id]}; give each row its own"
            problems.append(Problem(number, "id", message))
        else:
            first[record.id] = number
            unique.append(record)
    return unique


def _file_bytes(path: Path, compressed: bool) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataFormatError(
            f"{path}: no such file; check the path (a hub data set is written {HUB_PREFIX}owner/name)"
        ) from None
    except OSError as error:
        raise DataFormatError(f"{path}: can't be read ({error.strerror}); give a readable file") from None
    try:
        return gzip.decompress(data) if compressed else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataFormatError(f"{path}: damaged gzip file ({error}); get it anew") from None


def _from_records(
    source: str,
    unit: Literal["line", "row"],
    records: list[tuple[int, Any]],
    problems: Iterable[Problem] = (),
) -> Rows:
    """Rows out of parsed values, which should be objects with fields."""
    rows, bad = [], list(problems)
    columns: dict[str, None] = {}
    for number, record in records:
        if isinstance(record, dict):
            rows.append((number, record))
            columns.update(dict.fromkeys(record))
        else:
            bad.append(Problem(number, "", f"not an object with fields but {type(record).__name__}"))
    if not rows and not bad:
        raise DataFormatError(f"{source}: no rows; give a source with at least one")
    return Rows(source=source, unit=unit, columns=tuple(columns), rows=tuple(rows), problems=tuple(bad))


def _from_json_lines(source: str, data: bytes) -> Rows:
    records, problems = [], []
    for number, line, problem in _decoded_lines(data):
        if problem:
            problems.append(problem)
        elif line.strip():
            try:
                records.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                problems.append(Problem(number, "", f"not JSON: {error}"))
    return _from_records(source, "line", records, problems)


def _from_json_list(source: str, data: bytes) -> Rows:
    try:
        values = json.loads(data)
    except UnicodeDecodeError as error:
        raise DataFormatError(
            f"{source}: byte {error.start}: not UTF-8 (0x{data[error.start]:02x}); save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataFormatError(f"{source}: not valid JSON ({error}); correct the file") from None
    return _from_records(source, "row", list(enumerate(values, start=1)))


def _decoded_lines(data: bytes) -> Iterator[tuple[int, str, Problem | None]]:
    """Number and text of each line; a line that isn't UTF-8 is shown with escapes, and as a problem."""
    offset = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            yield number, line.decode(), None
        except UnicodeDecodeError as error:
            place = f"byte {offset + error.start} of the file (0x{line[error.start]:02x})"
            message = f"not UTF-8: {place}; save the file as UTF-8"
            yield number, line.decode(errors="backslashreplace"), Problem(number, "", message)
        offset += len(line) + 1


def _from_delimited(source: str, kind: str, data: bytes) -> Rows:
    lines, undecodable = [], {}
    for number, line, problem in _decoded_lines(data):
        lines.append(line.removesuffix("\r") + "\n")
        if problem:
            undecodable[number] = problem
    if 1 in undecodable:
        raise DataFormatError(f"{source}: line 1: {undecodable[1].message}")
    (_, _, first), *body = _tsv_records(source, lines) if kind == "tsv" else _records(source, lines, ",")
    # A file without a header may have an option twice in its first record: columns are told apart by place.
    names = [name.strip() for name in first]
    columns = [f"{name}#{i}" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]
    rows, problems = [], []
    for start, end, record in body:
        bad = [undecodable[line] for line in range(start, end + 1) if line in undecodable]
        if bad:
            problems.append(Problem(start, "", bad[0].message))
        elif len(record) != len(columns):
            problems.append(Problem(start, "", f"{len(record)} fields; the first line has {len(columns)}"))
        else:
            rows.append((start, dict(zip(columns, record, strict=True))))
    return Rows(
        source=source,
        unit="line",
        columns=tuple(columns),
        rows=tuple(rows),
        problems=tuple(problems),
        first_record=tuple(first),
    )


def _records(
    source: str, lines: list[str], delimiter: str, *, quoted: bool = True
) -> list[tuple[int, int, list[str]]]:
    """First line, last line and fields of every record; blank lines are skipped."""
    reader = csv.reader(
        lines, strict=True, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )
    records, start = [], 1
    try:
        for record in reader:
            if any(map(str.strip, record)):
                records.append((start, reader.line_num, record))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataFormatError(
            f"{source}: line {start}: not valid CSV ({error}); a quote may be missing or too many there"
        ) from None
    return records


def _tsv_records(source: str, lines: list[str]) -> list[tuple[int, int, list[str]]]:
    """TSV comes with quoting (spreadsheets) and without: quotes count where they work out in every record."""
    try:
        records = _records(source, lines, "\t")
        if len({len(record) for _, _, record in records}) == 1:
            return records
    except DataFormatError:
        pass
    return _records(source, lines, "\t", quoted=False)


def _from_parquet(source: str, data: bytes) -> Rows:
    if not data:
        raise DataFormatError(f"{source}: the file is empty; give a file with rows")
    try:
        # Not read_table on the path: it would take folders named like "fold=1" for columns.
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError) as error:
        raise DataFormatError(f"{source}: not a readable Parquet file ({error}); write it anew") from None
    try:
        return _from_records(source, "row", list(enumerate(table.to_pylist(), start=1)))
    except UnicodeDecodeError:
        pass
    records, problems = [], []
    for number in range(1, table.num_rows + 1):
        try:
            records += [(number, row) for row in table.slice(number - 1, 1).to_pylist()]
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} of a text (0x{error.object[error.start]:02x})"
            problems.append(Problem(number, "", f"not UTF-8: {byte}; write the text as UTF-8"))
    return _from_records(source, "row", records, problems)


def _hub_records(source: str) -> list[dict[str, Any]]:
    """Rows of `hf://owner/name[/config][:split]`, downloaded or from the hub's cache on this machine."""
    name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataFormatError(f"{source}: not a hub data set; write {HUB_PREFIX}owner/name[/config][:split]")
    load = _load_dataset()
    try:
        loaded = load("/".join(parts[:2]), *parts[2:], split=split or None)
    except Exception as error:  # the hub's client raises whatever its many layers raise
        raise DataFormatError(
            f"{source}: can't be loaded ({type(error).__name__}: {error}); check name, configuration and "
            "split. Without a network, download a file of the data set elsewhere and give its path"
        ) from error
    if isinstance(loaded, dict):  # no split was asked for: all of them came
        if len(loaded) != 1:
            names = ", ".join(loaded)
            example = f"{source}:{next(iter(loaded))}"
            raise DataFormatError(f"{source}: has the splits {names}; add one, as in {example}")
        (loaded,) = loaded.values()
    return loaded.to_list()


def _load_dataset() -> Callable[..., Any]:
    try:
        from datasets import load_dataset  # noqa: PLC0415 (takes a second, and only hub ids need it)
    except ImportError:
        raise ConfigError(
            "reading from the hub needs datasets; install it with: pip install 'calib-core[train]'"
        ) from None
    return load_dataset

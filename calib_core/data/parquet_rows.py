"""Rows out of Parquet, one row group at a time, and none of what they unfold to before its size is known."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calib_core.data.json_rows import RowsOfObjects
from calib_core.data.rows import Rows
from calib_core.data.source import Source
from calib_core.errors import DataFormatError, listed
from calib_core.storage.limits import COLUMNS, FILE_BYTES, LINE_BYTES, ROWS

BATCH_ROWS = 8192
BATCH_BYTES = 64 * 1024**2
VALUE_BYTES = 64
"""About what a number takes as a Python object."""
REPEATING = "DELTA_BYTE_ARRAY"
"""The encoding in which a text may begin with all of the one before it."""

UNREADABLE = (
    *(pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError),
    *(OverflowError, NotImplementedError, RuntimeError),
)
"""What pyarrow raises over damaged files, and over values that Python cannot represent."""


def read_parquet_rows(source: Source, fields: Collection[str] | None) -> Rows:
    """Rows of a Parquet file; columns that aren't asked for are not even looked at.

    Raises:
        NoRowsError: the file holds no rows.
        DataFormatError: it can't be read, a column that is asked for is of a type that no row needs (a date,
            say), or the file is beyond a limit.
    """
    try:
        if source.packed:
            return _read(source, pq.ParquetFile(io.BytesIO(source.content())), fields)
        # Not read_table on the path: it would take folders named like "fold=1" for columns.
        with pq.ParquetFile(source.path) as file:
            return _read(source, file, fields)
    except (DataFormatError, MemoryError):
        raise
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0][:200]
        raise DataFormatError(
            f"{source.name}: not a readable Parquet file ({reason}); write it again"
        ) from None


def _read(source: Source, file: pq.ParquetFile, fields: Collection[str] | None) -> Rows:
    schema = file.schema_arrow
    ROWS.check(file.metadata.num_rows, source.name)
    COLUMNS.check(len(schema.names), source.name)
    if len(set(schema.names)) < len(schema.names):
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        raise DataFormatError(f"{source.name}: column {listed(twice)} is there twice; rename one of them")
    wanted = [name for name in schema.names if fields is None or name in fields]
    for name in wanted:
        _check_type(f"{source.name}: column {name!r}", schema.field(name).type)
    found = RowsOfObjects(source.name, "row", None)
    number = 1
    for batch in _batches(source, file, wanted):
        for value in _values(batch):
            if isinstance(value, UnicodeDecodeError):
                byte = f"byte {value.start} of a text (0x{value.object[value.start]:02x})"
                found.add_problem(number, f"not UTF-8: {byte}; write the text as UTF-8")
            else:
                found.add(number, value)
            number += 1
    rows = found.finish(dict(file.metadata.metadata or {}))
    return Rows(**{**vars(rows), "columns": tuple(schema.names)})


def _check_type(where: str, kind: pa.DataType, depth: int = 0) -> None:
    """Refuse types whose values no row needs; what they are as Python objects may fail, or take long."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind) and depth < 8:
        parts = [kind.field(i) for i in range(kind.num_fields)]
        if len({part.name for part in parts}) < len(parts):
            raise DataFormatError(f"{where}: a field of it is there twice; rename one of them")
        for part in parts:
            _check_type(f"{where}, field {part.name!r}", part.type, depth + 1)
        return
    nested = (types.is_list, types.is_large_list, types.is_list_view, types.is_large_list_view)
    if depth < 8 and (types.is_fixed_size_list(kind) or any(is_kind(kind) for is_kind in nested)):
        _check_type(where, kind.value_type, depth + 1)
        return
    plain = (
        *(types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal),
        *(types.is_string, types.is_large_string, types.is_string_view),
        *(types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary),
    )
    if not any(is_kind(kind) for is_kind in plain):
        raise DataFormatError(
            f"{where}: its type is {str(kind)[:80]}; texts, numbers and lists of them are expected"
        )


def _batches(source: Source, file: pq.ParquetFile, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows in batches that fit into memory, after a look at what the whole file unfolds to."""
    groups = range(file.metadata.num_row_groups)
    folded = _folded(source, file, wanted)
    bounds = [_bound(file, group, wanted, _longest(source, folded, group, wanted)) for group in groups]
    rows = [
        max(1, min(BATCH_ROWS, file.metadata.row_group(group).num_rows * BATCH_BYTES // max(bound, 1)))
        for group, bound in zip(groups, bounds, strict=True)
    ]
    if sum(bounds) > FILE_BYTES.value():
        _check_unfolded(source, file, folded, wanted, rows)
    size = 0
    for group in groups:
        for batch in file.iter_batches(batch_size=rows[group], row_groups=[group], columns=wanted):
            size += batch.nbytes
            FILE_BYTES.check(size, source.name)  # where the file's own figures are not true
            yield batch


def _leaves(file: pq.ParquetFile, wanted: list[str]) -> dict[int, str]:
    """Numbers and paths of the columns, as Parquet counts them, that make up the wanted ones."""
    schema = file.metadata.schema
    paths = {i: schema.column(i).path for i in range(len(schema))}
    return {i: path for i, path in paths.items() if path in wanted or path.partition(".")[0] in wanted}


def _folded(source: Source, file: pq.ParquetFile, wanted: list[str]) -> pq.ParquetFile:
    """The same file, read so that a text that stands for a million rows is held once."""
    texts = [
        path
        for leaf, path in _leaves(file, wanted).items()
        if file.metadata.schema.column(leaf).physical_type == "BYTE_ARRAY" and not _is_delta(file, leaf)
    ]
    place = io.BytesIO(source.content()) if source.packed else source.path
    return pq.ParquetFile(place, read_dictionary=texts)


def _longest(source: Source, folded: pq.ParquetFile, group: int, wanted: list[str]) -> int:
    """Bytes of the longest text of a row group that may stand for many rows."""
    batch = next(folded.iter_batches(batch_size=1, row_groups=[group], columns=wanted), None)
    lengths = [pc.max(pc.binary_length(each.dictionary)).as_py() or 0 for each in _dictionaries(batch)]
    longest = max(lengths, default=0)
    LINE_BYTES.check(longest, f"{source.name}: row group {group + 1}")
    columns = folded.metadata.row_group(group)
    deltas = [leaf for leaf in _leaves(folded, wanted) if _is_delta(folded, leaf)]
    return max([longest, *(columns.column(leaf).total_uncompressed_size for leaf in deltas)])


def _bound(file: pq.ParquetFile, group: int, wanted: list[str], longest: int) -> int:
    """Bytes that a row group unfolds to at most."""
    total = 0
    for leaf in _leaves(file, wanted):
        column = file.metadata.row_group(group).column(leaf)
        repeats = column.has_dictionary_page or REPEATING in column.encodings
        each = VALUE_BYTES + _fixed_bytes(file, leaf) + (longest if repeats else 0)
        total += column.total_uncompressed_size + column.num_values * each
    return total


def _is_delta(file: pq.ParquetFile, leaf: int) -> bool:
    """Whether a column's texts are written in a way that pyarrow can't fold."""
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    return any(
        not {REPEATING, "DELTA_LENGTH_BYTE_ARRAY"}.isdisjoint(group.column(leaf).encodings)
        for group in groups
    )


def _fixed_bytes(file: pq.ParquetFile, leaf: int) -> int:
    """Bytes of each value of a column whose values all have one size; 0 for other columns."""
    column = file.metadata.schema.column(leaf)
    return int(column.length) if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0


def _check_unfolded(
    source: Source, file: pq.ParquetFile, folded: pq.ParquetFile, wanted: list[str], rows: list[int]
) -> None:
    """Refuse a file that unfolds to more than the limit, without holding what it unfolds to.

    Args:
        source: The file.
        file: It, as it is read.
        folded: It, with folded texts.
        wanted: Names of the columns.
        rows: How many rows of each row group may be unfolded at a time.
    """
    leaves = _leaves(file, wanted)
    deltas = sorted(
        {
            path if path in wanted else path.partition(".")[0]
            for leaf, path in leaves.items()
            if _is_delta(file, leaf)
        }
    )
    total = 0
    for group in range(file.metadata.num_row_groups):
        total += sum(
            file.metadata.row_group(group).column(leaf).num_values * (VALUE_BYTES + _fixed_bytes(file, leaf))
            for leaf in leaves
        )
        FILE_BYTES.check(total, source.name)
        for batch in folded.iter_batches(
            batch_size=rows[group] if deltas else BATCH_ROWS, row_groups=[group], columns=wanted
        ):
            for each in _dictionaries(batch):
                total += pc.sum(pc.binary_length(each.dictionary).take(each.indices)).as_py() or 0
            total += sum(batch[name].nbytes for name in deltas)
            FILE_BYTES.check(total, source.name)


def _dictionaries(batch: pa.RecordBatch | None) -> Iterator[pa.DictionaryArray]:
    """The arrays of folded texts in a batch, those inside lists and structs too."""
    arrays = list(batch.columns) if batch else []
    while arrays:
        array = arrays.pop()
        kind = array.type
        if pa.types.is_dictionary(kind):
            if pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type):
                yield array
        elif pa.types.is_struct(kind):
            arrays += array.flatten()
        elif pa.types.is_nested(kind):
            arrays.append(array.flatten())


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows of a batch as Python objects; a row with bytes that aren't UTF-8 is an error in its place."""
    as_read = not any("binary" in str(kind) for kind in batch.schema.types)
    try:
        yield from batch.to_pylist() if as_read else map(_decoded, batch.to_pylist())
        return
    except UnicodeDecodeError:
        pass
    for row in range(batch.num_rows):
        try:
            yield _decoded(batch.slice(row, 1).to_pylist()[0])
        except UnicodeDecodeError as error:
            yield error


def _decoded(value: Any) -> Any:
    """A value with bytes as the texts that they are: some writers don't say that a column holds texts."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, dict):
        return {name: _decoded(each) for name, each in value.items()}
    return value

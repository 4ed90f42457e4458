"""Parquet tables of this package's own: of the types that they were written with, and without gaps."""

from __future__ import annotations

import pyarrow as pa


def as_declared(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of a schema's types, in which columns that must not have nulls have none, as `cast` sees to it.

    Args:
        table: What a file holds; columns that the schema doesn't have are left out.
        schema: What this package writes into such files.

    Raises:
        ValueError: a column is missing, is of another type, or has a null (`pyarrow.ArrowInvalid` is one).
        pyarrow.ArrowException: the same of other types.
    """
    if missing := [name for name in schema.names if table.schema.get_field_index(name) < 0]:
        raise ValueError(f"column {missing[0]!r} is missing, or is there more than once")
    found = table.select(schema.names).cast(schema)
    found.validate(full=True)  # of texts: that they are UTF-8
    return found

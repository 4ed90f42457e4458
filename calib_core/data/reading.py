"""The one way into files of rows: questions, preference pairs, predictions and other programs' samples.

The content says what a file is: Parquet or text, packed with gzip or not. The name's ending tells CSV, TSV
and JSON apart, and may be missing where the content is JSON.
"""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike, fspath

from calib_core.data.delimited import read_delimited_rows
from calib_core.data.hub import read_hub_rows
from calib_core.data.json_rows import read_json_rows
from calib_core.data.parquet_rows import read_parquet_rows
from calib_core.data.rows import Rows
from calib_core.data.source import HUB_PREFIX, open_source
from calib_core.errors import DataFormatError
from calib_core.storage.limits import FILE_BYTES
from calib_core.storage.uris import fetch


def read_rows(
    source: str | PathLike[str], *, fields: Collection[str] | None = None, name: str | None = None
) -> Rows:
    """Read every row of a file, by path or URI, or of a hub data set `hf://owner/name[/config][:split]`.

    Args:
        source: The file or data set.
        fields: Names of the fields that the caller looks at; others are named in `Rows.columns`, but only CSV
            rows hold them.
        name: What messages call the source, where it isn't what the user gave.

    Raises:
        ConfigError: the URI can't be reached; see `calib_core.storage.uris.fetch`.
        NoRowsError: the file is as it should be, but holds no rows.
        DataFormatError: there is no such file, its type is unknown, it is damaged or beyond a limit of
            `calib_core.storage.limits`, or the hub can't be reached. A row that can't be read is no error
            yet: it is listed in `problems`.
    """
    name = name or fspath(source)
    try:
        if name.startswith(HUB_PREFIX):
            return read_hub_rows(name, fields)
        opened = open_source(name, fetch(source))
        if opened.kind == "parquet":
            return read_parquet_rows(opened, fields)
        if opened.kind == "json":
            return read_json_rows(opened, fields)
        return read_delimited_rows(opened)
    except MemoryError:
        raise DataFormatError(
            f"{name}: needs more memory than this machine has; split the file, or lower "
            f"{FILE_BYTES.variable} to have such files refused earlier"
        ) from None

"""One hash over all that a predictions table says, written into its file and compared when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from calib_core.errors import DataFormatError

DIGEST_KEY = b"calib.digest"
PARQUET_MAGIC = b"PAR1"


def content_digest(names: Sequence[Any], columns: Sequence[NDArray[Any]]) -> str:
    """Hex SHA-256 over JSON values and the numbers of arrays, in their order.

    Args:
        names: anything JSON-able.
        columns: arrays of any shape; their numbers are hashed as little-endian bytes.
    """
    digest = hashlib.sha256(json.dumps([*names, len(columns)], sort_keys=True).encode())
    for column in columns:
        digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def check_digest(path: Path, digest: str) -> None:
    """Compare the digest of what was read with the one that a file was written with, where it has one.

    Raises:
        DataFormatError: they differ: the file was damaged.
    """
    with path.open("rb") as stream:
        if stream.read(len(PARQUET_MAGIC)) != PARQUET_MAGIC:
            return
    try:
        written = (pq.read_schema(path).metadata or {}).get(DIGEST_KEY)
    except (pa.ArrowException, OSError) as error:
        raise DataFormatError(f"{path}: not a readable Parquet file ({error}); write it again") from None
    if written is not None and written != digest.encode():
        raise DataFormatError(
            f"{path}: damaged: its rows are not those that were written (file metadata 'calib.digest'); copy "
            "it again, or score the questions again"
        )

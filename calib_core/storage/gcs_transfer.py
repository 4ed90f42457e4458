"""Bytes to and from Google Cloud Storage: sliced, in parallel, with checksums, retries and preconditions."""

from __future__ import annotations

import base64
import contextlib
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
from google.api_core import exceptions as api
from google.cloud.storage import Blob, Bucket, transfer_manager
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from calib_core.errors import DataFormatError, StaleVersionError
from calib_core.storage.files import sha256_json

OWN = ".calib-"
"""What the names of objects begin with that only these modules read: manifests, and parts of uploads."""

SLICE_BYTES = 32 * 2**20
"""Files beyond this are sent and fetched in slices of it, several at a time."""

WORKERS = 8
RETRY_S, MOVING_RETRY_S = 90.0, 600.0
"""How long a question, and a slice with its bytes, is tried again from its beginning on."""

FIRST_PAUSE_S = 0.5
"""The pause before the second try; they grow, and are random."""

TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two reads."""

DAMAGED_ATTEMPTS = 3
COMPOSE_LIMIT = 32
_WRITER = "calib-writer"


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object at one generation.

    Attributes:
        name: Its name in the bucket.
        size_bytes: Its size.
        crc32c: Its checksum as the service states it, base64.
        generation: Which of the object's versions is meant.
    """

    name: str
    size_bytes: int
    crc32c: str
    generation: int

    @classmethod
    def of(cls, blob: Blob) -> StoredObject:
        """The object that the service's answer describes."""
        return cls(
            name=blob.name, size_bytes=int(blob.size), crc32c=blob.crc32c, generation=int(blob.generation)
        )


def is_sliced(size_bytes: int) -> bool:
    """Whether a file of this size travels in slices."""
    return size_bytes > SLICE_BYTES


def retrying(*, moving: bool = False) -> dict[str, Any]:
    """Keyword arguments of an operation: time limits, and when to try again.

    Args:
        moving: whether it moves a file's bytes, which may take its time even where nothing fails.
    """
    retry = DEFAULT_RETRY.with_delay(initial=FIRST_PAUSE_S, maximum=20.0, multiplier=2.0)
    return {"retry": retry.with_timeout(MOVING_RETRY_S if moving else RETRY_S), "timeout": TIMEOUT_S}


def crc32c_file(path: Path) -> str:
    """A file's CRC32C as the service writes it: big-endian, base64."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as stream:
        for _ in checksum.consume(stream, 2**20):
            pass
    return base64.b64encode(checksum.digest()).decode()


def download(bucket: Bucket, wanted: Sequence[tuple[StoredObject, Path]]) -> None:
    """Download objects into files; those that are there already and whole are left as they are.

    A slice whose connection breaks goes on where it stopped. What lies on the disk at the end has been held
    to the service's checksum.

    Raises:
        DataFormatError: a file was damaged on its way every time.
        google.api_core.exceptions.NotFound: an object has another generation now, or is gone.
    """
    left = [pair for pair in wanted if not _whole(*pair)]
    for _ in range(DAMAGED_ATTEMPTS):
        small = [(obj, path) for obj, path in left if not is_sliced(obj.size_bytes)]
        try:
            transfer_manager.download_many(
                [(_pinned(bucket, obj), str(path)) for obj, path in small],
                download_kwargs={"checksum": "crc32c", "raw_download": True, **retrying(moving=True)},
                worker_type=transfer_manager.THREAD,
                max_workers=WORKERS,
                raise_exception=True,
            )
            for obj, path in left:
                if is_sliced(obj.size_bytes):
                    transfer_manager.download_chunks_concurrently(
                        _pinned(bucket, obj),
                        str(path),
                        chunk_size=SLICE_BYTES,
                        download_kwargs={"raw_download": True, **retrying(moving=True)},
                        worker_type=transfer_manager.THREAD,
                        max_workers=WORKERS,
                    )
        except DataCorruption:
            pass  # found again below, with all others that are damaged
        left = [pair for pair in left if not _whole(*pair)]
        if not left:
            return
    raise DataFormatError(
        f"gs://{bucket.name}/{left[0][0].name}: arrived damaged {DAMAGED_ATTEMPTS} times (its CRC32C is not "
        f"{left[0][0].crc32c}); look for a proxy that changes downloads, or try again later"
    )


def put(bucket: Bucket, name: str, data: bytes, *, expected: int) -> StoredObject:
    """Write one object in one request, if it still has the generation `expected` (0: is not there).

    Raises:
        StaleVersionError: it has another one.
    """
    blob, writer = bucket.blob(name), uuid.uuid4().hex
    blob.metadata = {_WRITER: writer}
    try:
        blob.upload_from_string(
            data,
            content_type="application/octet-stream",
            checksum="crc32c",
            if_generation_match=expected,
            **retrying(moving=True),
        )
        return StoredObject.of(blob)
    except api.PreconditionFailed:
        # An answer may be lost and the request sent again: then it is our own object that stands in the way.
        found = bucket.get_blob(name, **retrying())
        if found is None or (found.metadata or {}).get(_WRITER) != writer:
            raise _stale(bucket, name) from None
        return StoredObject.of(found)


def upload(bucket: Bucket, name: str, path: Path, *, expected: int) -> StoredObject:
    """Write a file to an object, if it still has the generation `expected` (0: is not there).

    A large file goes up in slices that are put together at the end, so that the object appears whole; slices
    that an earlier try has brought there are not sent again.

    Raises:
        StaleVersionError: the object has another generation.
        DataFormatError: what has arrived is not what was sent.
    """
    size_bytes, crc32c = path.stat().st_size, crc32c_file(path)
    if is_sliced(size_bytes):
        stored = _upload_slices(bucket, name, path, crc32c=crc32c, expected=expected)
    else:
        stored = put(bucket, name, path.read_bytes(), expected=expected)
    if (stored.size_bytes, stored.crc32c) != (size_bytes, crc32c):
        raise DataFormatError(
            f"gs://{bucket.name}/{name}: what was stored (CRC32C {stored.crc32c}) is not {path} (CRC32C "
            f"{crc32c}), which may have been written to meanwhile; publish it again"
        )
    return stored


def _upload_slices(bucket: Bucket, name: str, path: Path, *, crc32c: str, expected: int) -> StoredObject:
    size_bytes = path.stat().st_size
    key = sha256_json([name, size_bytes, crc32c, SLICE_BYTES])[:16]
    folder = f"{name.rpartition('/')[0]}/{OWN}parts/{key}/".removeprefix("/")
    there = {blob.name: blob for blob in bucket.list_blobs(prefix=folder, **retrying())}

    def send(start: int) -> Blob:
        with path.open("rb") as stream:
            stream.seek(start)
            data = stream.read(SLICE_BYTES)
        part = bucket.blob(f"{folder}{start:015d}")
        found = there.get(part.name)
        if found is None or (found.size, found.crc32c) != (len(data), _crc32c(data)):
            part.upload_from_string(data, checksum="crc32c", **retrying(moving=True))
        return part

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(send, range(0, size_bytes, SLICE_BYTES)))
    used = list(parts)
    while len(parts) > COMPOSE_LIMIT:
        groups = [parts[i : i + COMPOSE_LIMIT] for i in range(0, len(parts), COMPOSE_LIMIT)]
        parts = [_compose(bucket, f"{group[0].name}-{len(parts)}", group, {}) for group in groups]
        used += parts
    try:
        whole = _compose(bucket, name, parts, {"if_generation_match": expected})
    except api.PreconditionFailed:
        found = bucket.get_blob(name, **retrying())
        if found is None or (found.size, found.crc32c) != (size_bytes, crc32c):
            raise _stale(bucket, name) from None
        whole = found
    in_parallel(lambda part: remove(bucket, part.name), used)
    return StoredObject.of(whole)


def _compose(bucket: Bucket, name: str, parts: Sequence[Blob], conditions: dict[str, int]) -> Blob:
    blob = bucket.blob(name)
    blob.content_type = "application/octet-stream"
    blob.compose(list(parts), **conditions, **retrying())
    return blob


def remove(bucket: Bucket, name: str) -> None:
    """Delete an object; one that isn't there counts as deleted."""
    with contextlib.suppress(api.NotFound):
        bucket.blob(name).delete(**retrying())


def in_parallel(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Results of a function for each item, in their order; the first error is raised when all have ended."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, items))


def _pinned(bucket: Bucket, obj: StoredObject) -> Blob:
    return bucket.blob(obj.name, generation=obj.generation)


def _whole(obj: StoredObject, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == obj.size_bytes and crc32c_file(path) == obj.crc32c


def _crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def _stale(bucket: Bucket, name: str) -> StaleVersionError:
    return StaleVersionError(
        f"gs://{bucket.name}/{name}: changed since it was read; nothing was written, read it again and "
        "decide anew"
    )

"""Bytes to and from Google Cloud Storage: sliced, in parallel, with checksums, retries and preconditions."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.api_core import exceptions as api
from google.cloud.storage import Blob, Bucket, transfer_manager
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from calib_core.errors import DataFormatError, StaleVersionError
from calib_core.storage import bucket as limits
from calib_core.storage.bucket import OWN, WORKERS, StoredObject, in_parallel, is_sliced
from calib_core.storage.checksums import crc32c, crc32c_file
from calib_core.storage.files import sha256_json

TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two reads."""

COMPOSE_LIMIT = 32
ATTEMPTS = 5
_WRITER = "calib-writer"


def described(blob: Blob) -> StoredObject:
    """The object that the service's answer describes."""
    return StoredObject(
        name=blob.name, size_bytes=int(blob.size), crc32c=blob.crc32c, version=str(blob.generation)
    )


def retrying(*, moving: bool = False) -> dict[str, Any]:
    """Keyword arguments of an operation: time limits, and when to try again.

    Args:
        moving: whether it moves a file's bytes, which may take its time even if nothing fails.
    """
    retry = DEFAULT_RETRY.with_delay(
        initial=limits.FIRST_PAUSE_S, maximum=limits.LONGEST_PAUSE_S, multiplier=2.0
    )
    limit_s = limits.MOVING_RETRY_S if moving else limits.RETRY_S
    return {"retry": retry.with_timeout(limit_s), "timeout": TIMEOUT_S}


def download(bucket: Bucket, wanted: Sequence[tuple[StoredObject, Path]]) -> None:
    """Download objects into files; those that are there already and whole are left as they are.

    A slice whose connection breaks resumes where it stopped. What lies on the disk at the end has been held
    to the service's checksum.

    Raises:
        DataFormatError: a file was damaged on its way every time.
        google.api_core.exceptions.NotFound: an object has another generation now, or is gone.
    """
    left = [pair for pair in wanted if not _whole(*pair)]
    for _ in range(limits.DAMAGED_ATTEMPTS):
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
                        chunk_size=limits.SLICE_BYTES,
                        download_kwargs={"raw_download": True, **retrying(moving=True)},
                        worker_type=transfer_manager.THREAD,
                        max_workers=WORKERS,
                    )
        except DataCorruption:
            pass  # found again below, with all others that are damaged
        left = [pair for pair in left if not _whole(*pair)]
        if not left:
            return
    raise arrived_damaged(bucket, left[0][0])


def put(bucket: Bucket, name: str, data: bytes, *, expected: str) -> StoredObject:
    """Write one object in one request, if it still has the generation `expected` ("": is not there).

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
            if_generation_match=int(expected or 0),
            **retrying(moving=True),
        )
        return described(blob)
    except api.PreconditionFailed:
        # An answer may be lost and the request sent again: then it is our own object that stands in the way.
        found = bucket.get_blob(name, **retrying())
        if found is None or (found.metadata or {}).get(_WRITER) != writer:
            raise _stale(bucket, name) from None
        return described(found)


def upload(bucket: Bucket, name: str, path: Path, *, expected: str) -> StoredObject:
    """Write a file to an object, if it still has the generation `expected` ("": is not there).

    A large file goes up in slices that are put together at the end, so that the object appears whole; slices
    that an earlier try has brought there are not sent again.

    Raises:
        StaleVersionError: the object has another generation.
        DataFormatError: what has arrived is not what was sent.
    """
    size_bytes, checksum = path.stat().st_size, crc32c_file(path)
    if is_sliced(size_bytes):
        stored = _in_slices(bucket, name, path, checksum=checksum, expected=expected)
    else:
        stored = put(bucket, name, path.read_bytes(), expected=expected)
    if (stored.size_bytes, stored.crc32c) != (size_bytes, checksum):
        raise DataFormatError(
            f"gs://{bucket.name}/{name}: what was stored (CRC32C {stored.crc32c}) is not {path} (CRC32C "
            f"{checksum}), which may have been written to meanwhile; publish it again"
        )
    return stored


def _in_slices(bucket: Bucket, name: str, path: Path, *, checksum: str, expected: str) -> StoredObject:
    """Write a large file; start again if another sender of the same one has removed the slices of both."""
    for _ in range(ATTEMPTS):
        try:
            return _upload_slices(bucket, name, path, checksum=checksum, expected=expected)
        except api.NotFound as error:
            gone = error
    raise gone


def _upload_slices(bucket: Bucket, name: str, path: Path, *, checksum: str, expected: str) -> StoredObject:
    size_bytes = path.stat().st_size
    key = sha256_json([name, size_bytes, checksum, limits.SLICE_BYTES])[:16]
    folder = f"{name[: name.rfind('/') + 1]}{OWN}parts/{key}/"
    there = {blob.name: blob for blob in bucket.list_blobs(prefix=folder, **retrying())}

    def send(start: int) -> Blob:
        with path.open("rb") as stream:
            stream.seek(start)
            data = stream.read(limits.SLICE_BYTES)
        part = bucket.blob(f"{folder}{start:015d}")
        found = there.get(part.name)
        if found is None or (found.size, found.crc32c) != (len(data), crc32c(data)):
            part.upload_from_string(data, checksum="crc32c", **retrying(moving=True))
        return part

    parts = in_parallel(send, range(0, size_bytes, limits.SLICE_BYTES))
    used = list(parts)
    while len(parts) > COMPOSE_LIMIT:
        groups = [parts[i : i + COMPOSE_LIMIT] for i in range(0, len(parts), COMPOSE_LIMIT)]
        parts = [_compose(bucket, f"{group[0].name}-{len(parts)}", group, {}) for group in groups]
        used += parts
    try:
        whole = _compose(bucket, name, parts, {"if_generation_match": int(expected or 0)})
    except api.PreconditionFailed:
        found = bucket.get_blob(name, **retrying())
        if found is None or (found.size, found.crc32c) != (size_bytes, checksum):
            raise _stale(bucket, name) from None
        whole = found
    in_parallel(lambda part: remove(bucket, part.name), used)
    return described(whole)


def _compose(bucket: Bucket, name: str, parts: Sequence[Blob], conditions: dict[str, int]) -> Blob:
    blob = bucket.blob(name)
    blob.content_type = "application/octet-stream"
    blob.compose(list(parts), **conditions, **retrying())
    return blob


def remove(bucket: Bucket, name: str) -> None:
    """Delete an object; one that isn't there counts as deleted."""
    with contextlib.suppress(api.NotFound):
        bucket.blob(name).delete(**retrying())


def renew(bucket: Bucket, obj: StoredObject, path: Path) -> StoredObject:
    """Give an object a new generation, its content unchanged; a large one is copied by the service.

    Raises:
        StaleVersionError: it has another generation already.
    """
    if not is_sliced(obj.size_bytes):
        return put(bucket, obj.name, path.read_bytes(), expected=obj.version)
    blob, token = bucket.blob(obj.name), None
    blob.metadata = {_WRITER: uuid.uuid4().hex}
    try:
        while True:
            token, _, _ = blob.rewrite(
                _pinned(bucket, obj), token=token, if_generation_match=int(obj.version), **retrying()
            )
            if token is None:
                return described(blob)
    except (api.NotFound, api.PreconditionFailed):
        raise _stale(bucket, obj.name) from None


def discard(bucket: Bucket, obj: StoredObject) -> None:
    """Delete an object if it still has the generation that it had."""
    with contextlib.suppress(api.NotFound, api.PreconditionFailed):
        bucket.blob(obj.name).delete(if_generation_match=int(obj.version), **retrying())


def arrived_damaged(bucket: Bucket, obj: StoredObject) -> DataFormatError:
    """What is told of an object whose checksum was another every time."""
    return DataFormatError(
        f"gs://{bucket.name}/{obj.name}: arrived damaged {limits.DAMAGED_ATTEMPTS} times (its CRC32C is not "
        f"{obj.crc32c}); look for a proxy that changes downloads, or try again later"
    )


def _pinned(bucket: Bucket, obj: StoredObject) -> Blob:
    return bucket.blob(obj.name, generation=int(obj.version))


def _whole(obj: StoredObject, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == obj.size_bytes and crc32c_file(path) == obj.crc32c


def _stale(bucket: Bucket, name: str) -> StaleVersionError:
    return StaleVersionError(
        f"gs://{bucket.name}/{name}: changed since it was read; nothing was written, read it again and "
        "decide again"
    )

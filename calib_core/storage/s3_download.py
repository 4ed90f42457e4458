"""Objects of S3 into files: sliced, in parallel, held to checksums.

What was written from here has its CRC32C as metadata or in a manifest. Objects of others are held to the MD5
that their ETag is, or is made of. The checksum headers of newer S3 are not asked for: not all servers have
them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import botocore.exceptions as boto
from botocore.exceptions import ClientError

from calib_core.errors import DataFormatError
from calib_core.storage import bucket as limits
from calib_core.storage.bucket import GoneError, StoredObject, in_parallel
from calib_core.storage.checksums import crc32c, crc32c_file
from calib_core.storage.s3_requests import (
    CRC32C,
    Requests,
    described,
    etag,
    is_missing,
    md5,
    retried,
    status_of,
)

CHUNK_BYTES = 2**20
_MD5, _MD5_OF_PARTS = re.compile(r"[0-9a-f]{32}"), re.compile(r"([0-9a-f]{32})-(\d+)")


def listed(requests: Requests, prefix: str) -> Iterator[StoredObject]:
    """All objects whose names begin with `prefix`; their CRC32C isn't known."""
    more: dict[str, Any] = {}
    while True:
        answer = requests.send("list_objects_v2", Prefix=prefix, **more)
        for entry in answer.get("Contents", []):
            yield StoredObject(name=entry["Key"], size_bytes=entry["Size"], version=etag(entry))
        if not answer.get("IsTruncated"):
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}


def read(requests: Requests, name: str) -> tuple[bytes, StoredObject] | None:
    """Content and ETag of a small object, which belong together; None if there is none."""

    def get() -> tuple[dict[str, Any], bytes]:
        answer: dict[str, Any] = dict(requests.client.get_object(Bucket=requests.bucket, Key=name))
        return answer, answer["Body"].read()

    for _ in range(limits.DAMAGED_ATTEMPTS):
        try:
            answer, data = retried(get)
        except ClientError as error:
            if not is_missing(error):
                raise
            return None
        found = described(name, {**answer, "ContentLength": len(data)})
        if found.crc32c:
            whole = crc32c(data) == found.crc32c
        else:
            whole = not _is_md5(answer) or md5(data).hexdigest() == found.version
        if whole:
            return data, found
    raise _damaged(requests, name)


def download(requests: Requests, wanted: Sequence[tuple[StoredObject, Path]]) -> None:
    """Bring objects into files; those that are there already and whole are left as they are.

    A slice whose connection breaks resumes where it stopped.

    Raises:
        GoneError: an object has another ETag now, or is gone.
        DataFormatError: a file was damaged on its way every time.
    """
    left = [pair for pair in wanted if _is_whole(requests, *pair, {}) is not True]
    for _ in range(limits.DAMAGED_ATTEMPTS):
        answers = _bring(requests, left)
        left = [pair for pair in left if _is_whole(requests, *pair, answers.get(pair[0].name, {})) is False]
        if not left:
            return
    raise _damaged(requests, left[0][0].name)


def _bring(requests: Requests, wanted: Iterable[tuple[StoredObject, Path]]) -> dict[str, dict[str, Any]]:
    """Fetch objects whole, in slices; what the server said with each, by its name."""
    slices = []
    for obj, path in wanted:
        path.write_bytes(b"")
        step = limits.SLICE_BYTES
        slices += [(obj, path, at, min(obj.size_bytes, at + step)) for at in range(0, obj.size_bytes, step)]
    return dict(in_parallel(lambda piece: _slice(requests, *piece), slices))


def _slice(
    requests: Requests, obj: StoredObject, path: Path, start: int, end: int
) -> tuple[str, dict[str, Any]]:
    at = start

    def get() -> dict[str, Any]:
        nonlocal at
        answer = requests.client.get_object(
            Bucket=requests.bucket, Key=obj.name, IfMatch=f'"{obj.version}"', Range=f"bytes={at}-{end - 1}"
        )
        for data in answer["Body"].iter_chunks(CHUNK_BYTES):
            at += os.pwrite(file.fileno(), data[: end - at], at)
        if at != end:
            raise boto.IncompleteReadError(actual_bytes=at - start, expected_bytes=end - start)
        return dict(answer)

    with path.open("r+b", buffering=0) as file:
        try:
            return obj.name, retried(get, moving=True)
        except ClientError as error:
            if status_of(error) in (412, 416) or is_missing(error):
                raise GoneError(str(error)) from error
            raise


def _is_whole(requests: Requests, obj: StoredObject, path: Path, answer: dict[str, Any]) -> bool | None:
    """Whether a file is an object's content; None if that can't be told.

    Args:
        requests: Of the object's bucket.
        obj: The object.
        path: The file.
        answer: What the server said with the content; empty before it was asked.
    """
    if not path.is_file() or path.stat().st_size != obj.size_bytes:
        return False
    if stated := obj.crc32c or answer.get("Metadata", {}).get(CRC32C):
        return crc32c_file(path) == stated
    if answer and _is_encrypted(answer):
        return None
    if _MD5.fullmatch(obj.version):
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: md5(b"")).hexdigest() == obj.version
    parts = _MD5_OF_PARTS.fullmatch(obj.version)
    first = requests.head(obj.name, PartNumber=1) if parts and answer else None
    if not parts or not first or not first["ContentLength"]:
        return None
    digest, count = _md5_of_parts(path, obj.size_bytes, first["ContentLength"])
    return digest == parts[1] if count == int(parts[2]) else None


def _damaged(requests: Requests, name: str) -> DataFormatError:
    return DataFormatError(
        f"{requests.root}/{name}: arrived damaged {limits.DAMAGED_ATTEMPTS} times (its checksum is another); "
        "look for a proxy that changes downloads, or try again later"
    )


def _is_encrypted(answer: dict[str, Any]) -> bool:
    """Whether keys of others are at work, so that an ETag is no MD5."""
    return "kms" in answer.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in answer


def _is_md5(answer: dict[str, Any]) -> bool:
    return bool(_MD5.fullmatch(etag(answer))) and not _is_encrypted(answer)


def _md5_of_parts(path: Path, size_bytes: int, part_bytes: int) -> tuple[str, int]:
    """What the ETag of a file that was sent in parts of a size begins with, and how many parts these are."""
    digests = []
    with path.open("rb") as stream:
        for start in range(0, size_bytes, part_bytes):
            end, digest = min(size_bytes, start + part_bytes), md5(b"")
            for at in range(start, end, CHUNK_BYTES):
                digest.update(stream.read(min(CHUNK_BYTES, end - at)))
            digests.append(digest.digest())
    return md5(b"".join(digests)).hexdigest(), len(digests)

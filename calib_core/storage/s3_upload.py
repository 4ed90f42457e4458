"""Files and bytes into objects of S3: in parts that go on where an earlier try stopped, with preconditions.

What is sent carries its MD5, to which every server of this kind holds it, and keeps its CRC32C as metadata.
The checksum headers and trailers of newer S3 are left out: not all servers take them.
"""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from calib_core.errors import DataFormatError, StaleVersionError
from calib_core.storage import bucket as limits
from calib_core.storage.bucket import OWN, StoredObject, in_parallel, is_sliced
from calib_core.storage.checksums import crc32c, crc32c_file
from calib_core.storage.files import sha256_json
from calib_core.storage.s3_download import read
from calib_core.storage.s3_requests import (
    BINARY,
    CRC32C,
    PARTS_LIMIT,
    WRITER,
    Requests,
    code_of,
    condition,
    described,
    etag,
    is_unmet,
    md5,
)

ATTEMPTS = 5


def put(requests: Requests, name: str, data: bytes, *, expected: str) -> StoredObject:
    """Write an object in one request, if it still has the ETag `expected` ("": is not there).

    Raises:
        StaleVersionError: it has another one.
    """
    metadata = {WRITER: uuid.uuid4().hex, CRC32C: crc32c(data)}
    request = {
        "Key": name,
        "Body": data,
        "ContentMD5": base64.b64encode(md5(data).digest()).decode(),
        "ContentType": BINARY,
        "Metadata": metadata,
        **condition(expected),
    }
    try:
        answer = requests.send("put_object", moving=True, **request)
    except ClientError as error:
        if not is_unmet(error):
            raise
        # An answer may be lost and the request sent again: then it is our own object that stands in the way.
        found = requests.head(name)
        if found is None or found.get("Metadata", {}).get(WRITER) != metadata[WRITER]:
            raise requests.stale(name) from None
        answer = found
    return described(name, {**answer, "ContentLength": len(data), "Metadata": metadata})


def honours(requests: Requests, name: str, data: bytes, *, expected: str) -> bool:
    """Whether the server refuses a condition that isn't met: that of a write that has just succeeded."""
    try:
        requests.send("put_object", Key=name, Body=data, **condition(expected))
    except ClientError as error:
        if is_unmet(error):
            return True
        raise
    return False


def upload(requests: Requests, name: str, path: Path, *, expected: str) -> StoredObject:
    """Write a file of any size, if the object still has the ETag `expected` ("": is not there).

    A large file goes up in parts that are put together at the end, so that the object appears whole;
    parts that an earlier try has brought there are not sent again.

    Raises:
        StaleVersionError: the object has another ETag.
        DataFormatError: the file was written to meanwhile.
    """
    before = path.stat()
    if not is_sliced(before.st_size):
        return put(requests, name, path.read_bytes(), expected=expected)
    stored = _in_parts(requests, name, path, expected)
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataFormatError(f"{path}: was written to while it was published; publish it again")
    return stored


def _in_parts(requests: Requests, name: str, path: Path, expected: str) -> StoredObject:
    """Write a large file; start again if another sender of the same one has ended or abandoned its upload."""
    for _ in range(ATTEMPTS):
        try:
            return _Parts(requests, name, path).send(expected)
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise
            gone = error
    raise gone


class _Parts:
    """One file's way up in parts.

    The upload's id is kept in an object beside the target until the upload has ended, under a name made of
    the file's content: who tries again finds it, and the parts that are there already.
    """

    def __init__(self, requests: Requests, name: str, path: Path) -> None:
        self._requests, self._name, self._path = requests, name, path
        self._size_bytes, self._crc32c = path.stat().st_size, crc32c_file(path)
        self._part_bytes = max(limits.SLICE_BYTES, -(-self._size_bytes // PARTS_LIMIT))
        key = sha256_json([name, self._size_bytes, self._crc32c, self._part_bytes])[:16]
        self._note = f"{name[: name.rfind('/') + 1]}{OWN}parts/{key}.json"

    def send(self, expected: str) -> StoredObject:
        """Send the parts that are missing and put all together; see `upload`."""
        upload, there = self._begun() or (self._begin(), {})
        numbers = range(1, -(-self._size_bytes // self._part_bytes) + 1)
        etags = in_parallel(lambda number: self._part(upload, number, there.get(number, "")), numbers)
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in zip(numbers, etags, strict=True)]
        stored = self._end(upload, parts, expected)
        self._requests.send("delete_object", Key=self._note)
        return stored

    def _begin(self) -> str:
        metadata = {WRITER: uuid.uuid4().hex, CRC32C: self._crc32c}
        kind = BINARY
        begun = self._requests.send(
            "create_multipart_upload", Key=self._name, ContentType=kind, Metadata=metadata
        )
        note = json.dumps({"upload": begun["UploadId"]}).encode()
        self._requests.send("put_object", Key=self._note, Body=note)
        return str(begun["UploadId"])

    def _begun(self) -> tuple[str, dict[int, str]] | None:
        """An earlier try's upload and the ETags of its parts by number; None if there is none."""
        found = read(self._requests, self._note)
        if found is None:
            return None
        try:
            upload = str(json.loads(found[0])["upload"])
            etags: dict[int, str] = {}
            more: dict[str, Any] = {}
            while True:
                answer = self._requests.send("list_parts", Key=self._name, UploadId=upload, **more)
                etags |= {part["PartNumber"]: etag(part) for part in answer.get("Parts", [])}
                if not answer.get("IsTruncated"):
                    return upload, etags
                more = {"PartNumberMarker": answer["NextPartNumberMarker"]}
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise
        except (ValueError, KeyError, TypeError):
            pass  # not our note, so not our upload either
        return None

    def _part(self, upload: str, number: int, there: str) -> str:
        """ETag of a part, which is sent if it isn't there."""
        with self._path.open("rb") as stream:
            stream.seek((number - 1) * self._part_bytes)
            data = stream.read(self._part_bytes)
        digest = md5(data)
        if there == digest.hexdigest():
            return there
        answer = self._requests.send(
            "upload_part",
            moving=True,
            Key=self._name,
            UploadId=upload,
            PartNumber=number,
            Body=data,
            ContentMD5=base64.b64encode(digest.digest()).decode(),
        )
        return etag(answer)

    def _end(self, upload: str, parts: list[dict[str, Any]], expected: str) -> StoredObject:
        """Put the parts together; the object must be as expected before, and ours after."""
        found = self._requests.stat(self._name)  # not all servers honour conditions here
        if not self._is_ours(found) and (found.version if found else "") != expected:
            raise self._given_up(upload)
        try:
            self._requests.send(
                "complete_multipart_upload",
                Key=self._name,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **condition(expected),
            )
        except ClientError as error:
            if not is_unmet(error) and code_of(error) != "NoSuchUpload":
                raise
        stored = self._requests.stat(self._name)
        if stored is None or not self._is_ours(stored):
            raise self._given_up(upload)
        return stored

    def _is_ours(self, found: StoredObject | None) -> bool:
        """Whether an object has this file's content: an answer may have been lost after the end."""
        return found is not None and (found.size_bytes, found.crc32c) == (self._size_bytes, self._crc32c)

    def _given_up(self, upload: str) -> StaleVersionError:
        try:
            self._requests.send("abort_multipart_upload", Key=self._name, UploadId=upload)
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise
        self._requests.send("delete_object", Key=self._note)
        return self._requests.stale(self._name)

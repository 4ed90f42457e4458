"""New versions of objects of S3 whose content stays, and removal by version.

A version is an ETag, and an ETag is made of the content and of how it was sent. So an object gets a new one
by being put together otherwise: a small one of one part in place of none, or of none; a large one of parts of
another length, which the server copies.
"""

from __future__ import annotations

import contextlib
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from calib_core.storage import bucket as limits
from calib_core.storage.bucket import StoredObject, in_parallel, is_sliced
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
)
from calib_core.storage.s3_upload import put


def renew(requests: Requests, obj: StoredObject, path: Path) -> StoredObject:
    """Give an object a new ETag, its content unchanged.

    Raises:
        StaleVersionError: it has another ETag already.
    """
    if is_sliced(obj.size_bytes):
        least = max(limits.SLICE_BYTES, -(-obj.size_bytes // PARTS_LIMIT))
        step = least + 1 + secrets.randbelow(least)
        ranges = [(at, min(obj.size_bytes, at + step) - 1) for at in range(0, obj.size_bytes, step)]

        def copied(upload: dict[str, Any], number: int) -> str:
            source = {"Bucket": requests.bucket, "Key": obj.name}
            answer = requests.send(
                "upload_part_copy",
                moving=True,
                **upload,
                PartNumber=number,
                CopySource=source,
                CopySourceIfMatch=obj.version,
                CopySourceRange="bytes={}-{}".format(*ranges[number - 1]),
            )
            return etag(answer["CopyPartResult"])

        return _put_together(requests, obj, len(ranges), copied)
    data = path.read_bytes()
    if "-" in obj.version:
        return put(requests, obj.name, data, expected=obj.version)

    def sent(upload: dict[str, Any], number: int) -> str:
        return etag(requests.send("upload_part", moving=True, **upload, PartNumber=number, Body=data))

    return _put_together(requests, obj, 1, sent)


def discard(requests: Requests, obj: StoredObject) -> None:
    """Delete an object if it still has the ETag that it had.

    Not all servers honour the condition, so the object is looked at just before.
    """
    found = requests.stat(obj.name)
    if found is not None and found.version == obj.version:
        try:
            requests.send("delete_object", Key=obj.name, IfMatch=obj.version)
        except ClientError as error:
            if not is_unmet(error):
                raise


def _put_together(
    requests: Requests, obj: StoredObject, n_parts: int, bring: Callable[[dict[str, Any], int], str]
) -> StoredObject:
    """Put an object together of parts, if it still has its ETag.

    Args:
        requests: Of its bucket.
        obj: The object as it is.
        n_parts: Number of parts.
        bring: Brings the part of a number to an upload, and gives its ETag.
    """
    metadata = {WRITER: uuid.uuid4().hex, CRC32C: obj.crc32c}
    upload: dict[str, Any] = {"Key": obj.name}
    begun = requests.send("create_multipart_upload", **upload, ContentType=BINARY, Metadata=metadata)
    upload["UploadId"] = begun["UploadId"]
    try:
        etags = in_parallel(lambda number: bring(upload, number), range(1, n_parts + 1))
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(etags, start=1)]
        before = requests.stat(obj.name)  # not all servers honour conditions at the end
        if before is not None and before.version == obj.version:
            requests.send(
                "complete_multipart_upload",
                **upload,
                MultipartUpload={"Parts": parts},
                **condition(obj.version),
            )
    except ClientError as error:
        if not is_unmet(error) and code_of(error) != "NoSuchUpload":
            raise
    after = requests.head(obj.name)
    if after is None or after.get("Metadata", {}).get(WRITER) != metadata[WRITER]:
        with contextlib.suppress(ClientError):
            requests.send("abort_multipart_upload", **upload)
        raise requests.stale(obj.name)
    return described(obj.name, after)

"""Requests to S3: sent again while what stops them may pass, and what their refusals mean."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import botocore.exceptions as boto
from botocore.exceptions import ClientError
from urllib3.exceptions import HTTPError

from calib_core.errors import StaleVersionError
from calib_core.storage import bucket as limits
from calib_core.storage.bucket import StoredObject

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

WRITER, CRC32C = "calib-writer", "calib-crc32c"
"""Metadata of what is written from here: one write's own mark, and the content's checksum."""

BINARY = "application/octet-stream"
PARTS_LIMIT = 10_000
"""How many parts an upload may have."""

_AGAIN = {"BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted"}
_AGAIN |= {"RequestTimeout", "SlowDown", "XAmzContentSHA256Mismatch", "Throttling", "ThrottlingException"}
BROKEN = (
    HTTPError,  # of a connection that breaks within an answer which boto3 reads itself
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    ConnectionError,
    TimeoutError,
)

Result = TypeVar("Result")


def status_of(error: ClientError) -> int:
    """HTTP status of a server's refusal."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    """The refusal's name, `NoSuchKey` say; the status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, ClientError):
        return status_of(error) in (408, 429) or status_of(error) >= 500 or code_of(error) in _AGAIN
    if isinstance(error, boto.SSLError):
        return False
    return isinstance(error, BROKEN)


def is_missing(error: ClientError) -> bool:
    """Whether the object, not the bucket, is what isn't there."""
    return status_of(error) == 404 and code_of(error) in ("NoSuchKey", "NotFound", "404")


def retried(request: Callable[[], Result], *, moving: bool = False) -> Result:
    """The answer to a request, which is sent again while what stops it may pass.

    Args:
        request: Sends it.
        moving: whether it moves a file's bytes, which may take its time even if nothing fails.
    """
    end_s = time.monotonic() + (limits.MOVING_RETRY_S if moving else limits.RETRY_S)
    longest_s = limits.FIRST_PAUSE_S
    while True:
        try:
            return request()
        except Exception as error:
            pause_s = random.uniform(0.0, longest_s)  # noqa: S311 (spreads requests out)
            if not is_transient(error) or time.monotonic() + pause_s > end_s:
                raise
        time.sleep(pause_s)
        longest_s = min(2 * longest_s, limits.LONGEST_PAUSE_S)


class Requests:
    """Requests for the objects of one bucket.

    Attributes:
        client: boto3's client.
        bucket: The bucket's name.
        root: Its URI, without a slash at its end.
    """

    def __init__(self, client: S3Client, bucket: str, root: str) -> None:
        self.client, self.bucket, self.root = client, bucket, root

    def send(self, request: str, *, moving: bool = False, **parameters: Any) -> dict[str, Any]:
        """The answer to a request of the client, by its name."""
        method = getattr(self.client, request)
        return retried(lambda: dict(method(Bucket=self.bucket, **parameters)), moving=moving)

    def head(self, name: str, **parameters: Any) -> dict[str, Any] | None:
        """What the server says of an object; None if there is none."""
        try:
            return self.send("head_object", Key=name, **parameters)
        except ClientError as error:
            if not is_missing(error):
                raise
            return None

    def stat(self, name: str) -> StoredObject | None:
        """An object, with its CRC32C where it was written from here; None if there is none."""
        answer = self.head(name)
        return described(name, answer) if answer else None

    def stale(self, name: str) -> StaleVersionError:
        """What a writer is told who came too late."""
        return StaleVersionError(
            f"{self.root}/{name}: changed since it was read; nothing was written, read it again and decide "
            "again"
        )


def described(name: str, answer: dict[str, Any]) -> StoredObject:
    """The object that the server's answer describes."""
    return StoredObject(
        name=name,
        size_bytes=answer["ContentLength"],
        version=etag(answer),
        crc32c=answer.get("Metadata", {}).get(CRC32C, ""),
    )


def etag(answer: dict[str, Any]) -> str:
    """An ETag without its quotes, which some servers leave out, and some don't take in conditions."""
    return str(answer["ETag"]).strip('"')


def condition(expected: str) -> dict[str, Any]:
    """Parameters of a write that is to happen only if the object has an ETag; "": if it isn't there."""
    return {"IfMatch": expected} if expected else {"IfNoneMatch": "*"}


def is_unmet(error: ClientError) -> bool:
    """Whether a write was refused for its condition; of an object that is gone some servers say 404."""
    return status_of(error) == 412 or is_missing(error)


def md5(data: bytes = b"") -> Any:
    """MD5 of bytes, which S3 has as checksum of transfers and as ETag."""
    return hashlib.md5(data, usedforsecurity=False)

"""What a store does with one object: the interface of `gcs` and `s3`, and the limits that both keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

OWN = ".calib-"
"""What the names of objects begin with that only these modules read: manifests, and parts of uploads."""

SLICE_BYTES = 32 * 2**20
"""Files beyond this are sent and fetched in slices of it, several at a time."""

WORKERS = 8
RETRY_S, MOVING_RETRY_S = 90.0, 600.0
"""How long a question, and a slice with its bytes, is tried again from its beginning on."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
"""The pause before the second try, and the longest; they grow, and are random."""

DAMAGED_ATTEMPTS = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object as it was when it was looked at.

    Attributes:
        name: Its name in the bucket.
        size_bytes: Its size.
        version: What changes when its content does: a generation, or an ETag.
        crc32c: CRC32C of its content, base64; "" where the store has not said it.
    """

    name: str
    size_bytes: int
    version: str
    crc32c: str = ""


class GoneError(Exception):
    """An object that was there a moment ago has been replaced or deleted."""


class Bucket(Protocol):
    """One bucket of a store.

    Attributes:
        root: The bucket's URI, without a slash at its end.
        cache: Name of the folder, in the cache, of what is fetched from such stores.
        identity: What tells this bucket from others of its name, on other servers.
    """

    root: str
    cache: str
    identity: str

    def reported(self, uri: str) -> AbstractContextManager[None]:
        """Turn what the store's library raises into a `ConfigError` that says what to do about it."""

    def stat(self, name: str) -> StoredObject | None:
        """An object, with its CRC32C if the store knows it; None if there is none."""

    def listed(self, prefix: str) -> Iterable[StoredObject]:
        """All objects whose names begin with `prefix`."""

    def read(self, name: str) -> tuple[bytes, StoredObject] | None:
        """Content and version of a small object, which belong together; None if there is none."""

    def put(self, name: str, data: bytes, *, expected: str) -> StoredObject:
        """Write an object in one request, if it still has the version `expected` ("": is not there).

        Raises:
            StaleVersionError: it has another one.
        """

    def swap(self, name: str, data: bytes, *, expected: str) -> StoredObject:
        """Like `put`, for those who race: refuses a server that doesn't honour the condition.

        Raises:
            StaleVersionError: the object has another version.
            ConfigError: the server writes whatever the version is.
        """

    def upload(self, name: str, path: Path, *, expected: str) -> StoredObject:
        """Write a file of any size, if the object still has the version `expected` ("": is not there).

        Raises:
            StaleVersionError: it has another one.
            DataFormatError: what has arrived is not what was sent.
        """

    def renew(self, obj: StoredObject, path: Path) -> StoredObject:
        """Give an object a new version, its content unchanged: who has looked at it before comes too late.

        Args:
            obj: The object as it is.
            path: A file with its content.

        Raises:
            StaleVersionError: it has another version already.
        """

    def discard(self, obj: StoredObject) -> None:
        """Delete an object if it still has the version that it had; else leave it alone."""

    def download(self, wanted: Sequence[tuple[StoredObject, Path]]) -> None:
        """Bring objects into files; those that are there already and whole are left as they are.

        Raises:
            GoneError: an object has another version now, or is gone.
            DataFormatError: a file was damaged on its way every time.
        """

    def remove(self, name: str) -> None:
        """Delete an object; one that isn't there counts as deleted."""

    def abandon(self, prefix: str) -> None:
        """Give up what interrupted uploads to names below `prefix` have left and no listing shows."""


def is_sliced(size_bytes: int) -> bool:
    """Whether a file of this size travels in slices."""
    return size_bytes > SLICE_BYTES


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results of a function for each item, in their order; after the first error nothing more is begun."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

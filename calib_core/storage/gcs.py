"""Google Cloud Storage, for `calib_core.storage.objects`.

Credentials are Google's application default ones; `STORAGE_EMULATOR_HOST` points at an emulator in place of
the service.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage import Client
from google.cloud.storage.exceptions import DataCorruption

from calib_core.errors import CalibError, ConfigError
from calib_core.storage import bucket as limits
from calib_core.storage import gcs_transfer as transfer
from calib_core.storage.bucket import Bucket, GoneError, StoredObject
from calib_core.storage.checksums import crc32c
from calib_core.storage.locations import Location


def open_bucket(location: Location) -> Bucket:
    """The bucket that a place is in."""
    return GcsBucket(location)


class GcsBucket:
    """A `calib_core.storage.bucket.Bucket` of Google Cloud Storage; versions are generations."""

    cache = "gcs"

    def __init__(self, location: Location) -> None:
        self.root = self.identity = f"gs://{location.bucket}"
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        with self.reported(location.uri):
            self._bucket = _client(emulator).bucket(location.bucket)
        if emulator:
            self.identity = f"{emulator} {self.root}"

    def stat(self, name: str) -> StoredObject | None:
        """An object; None if there is none."""
        blob = self._bucket.get_blob(name, **transfer.retrying())
        return transfer.described(blob) if blob else None

    def listed(self, prefix: str) -> Iterable[StoredObject]:
        """All objects whose names begin with `prefix`."""
        fields = "items(name,size,crc32c,generation),nextPageToken"
        blobs = self._bucket.list_blobs(prefix=prefix, fields=fields, **transfer.retrying())
        return map(transfer.described, blobs)

    def read(self, name: str) -> tuple[bytes, StoredObject] | None:
        """Content and generation of an object, which belong together; None if there is none."""
        damaged = 0
        while blob := self._bucket.get_blob(name, **transfer.retrying()):
            pinned = self._bucket.blob(name, generation=blob.generation)
            try:
                data = pinned.download_as_bytes(raw_download=True, checksum="crc32c", **transfer.retrying())
            except api.NotFound:
                continue  # replaced in between: read the new one
            except DataCorruption:
                data = None
            # The client holds what comes in one piece to its checksum, and not all that comes in several.
            if data is not None and crc32c(data) == blob.crc32c:
                return data, transfer.described(blob)
            damaged += 1
            if damaged == limits.DAMAGED_ATTEMPTS:
                raise transfer.arrived_damaged(self._bucket, transfer.described(blob)) from None
        if not self._is_there():
            raise api.NotFound(f"bucket {self._bucket.name}")
        return None

    def put(self, name: str, data: bytes, *, expected: str) -> StoredObject:
        """Write an object in one request, if it still has the generation `expected`."""
        return transfer.put(self._bucket, name, data, expected=expected)

    swap = put

    def upload(self, name: str, path: Path, *, expected: str) -> StoredObject:
        """Write a file of any size, if the object still has the generation `expected`."""
        return transfer.upload(self._bucket, name, path, expected=expected)

    def renew(self, obj: StoredObject, path: Path) -> StoredObject:
        """Give an object a new generation, its content unchanged."""
        return transfer.renew(self._bucket, obj, path)

    def discard(self, obj: StoredObject) -> None:
        """Delete an object if it still has the generation that it had."""
        transfer.discard(self._bucket, obj)

    def download(self, wanted: Sequence[tuple[StoredObject, Path]]) -> None:
        """Bring objects into files; those that are there already and whole are left as they are."""
        try:
            transfer.download(self._bucket, wanted)
        except api.NotFound as error:
            if not self._is_there():
                raise
            raise GoneError(str(error)) from error

    def remove(self, name: str) -> None:
        """Delete an object; one that isn't there counts as deleted."""
        transfer.remove(self._bucket, name)

    def abandon(self, prefix: str) -> None:
        """Do nothing: the slices of interrupted uploads are objects like others."""

    @contextlib.contextmanager
    def reported(self, uri: str) -> Iterator[None]:
        """Turn what the client library raises into one message with what to do."""
        try:
            yield
        except CalibError:
            raise
        except api.NotFound:
            raise ConfigError(
                f"{uri}: there is no bucket {self.root}; check its name, or create it"
            ) from None
        except (api.Forbidden, api.Unauthorized) as error:
            raise ConfigError(
                f"{uri}: no permission ({_reason(error)}); give this account the role Storage Object User on "
                f"{self.root} (Storage Object Viewer is enough to read)"
            ) from None
        except auth.DefaultCredentialsError:
            raise ConfigError(
                f"{uri}: no Google credentials; run `gcloud auth application-default login`, set "
                "GOOGLE_APPLICATION_CREDENTIALS, or give the pod a service account"
            ) from None
        except auth.RefreshError as error:
            raise ConfigError(
                f"{uri}: the Google credentials were refused ({_reason(error)}); they may have expired: run "
                "`gcloud auth application-default login` again, or renew the service account's key"
            ) from None
        except (
            api.RetryError,
            api.ServerError,
            api.TooManyRequests,
            auth.TransportError,
            requests.RequestException,
            ConnectionError,
        ) as error:
            raise ConfigError(
                f"{uri}: Google Cloud Storage can't be reached, or does not answer ({_reason(error)}); check "
                "the network and try again"
            ) from None
        except api.GoogleAPICallError as error:
            raise ConfigError(f"{uri}: Google Cloud Storage refused this ({_reason(error)})") from None

    def _is_there(self) -> bool:
        """Whether the bucket exists; listing it needs no more rights than reading its objects."""
        try:
            list(self._bucket.list_blobs(max_results=1, **transfer.retrying()))
        except api.NotFound:
            return False
        return True


@functools.cache
def _client(emulator: str | None) -> Client:
    """The one client of this process, or of an emulator."""
    return Client(project=None)  # objects need no project


def _reason(error: Exception) -> str:
    """First line of an error's text, or of what it was caused by."""
    cause = getattr(error, "cause", None) or error
    text = str(getattr(cause, "message", None) or cause).strip().partition("\n")[0]
    return text[:300] or type(cause).__name__

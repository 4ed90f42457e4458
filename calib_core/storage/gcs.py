"""Objects on Google Cloud Storage, for `calib_core.storage.uris`: whole folders, checksums, retries, races.

Credentials are Google's application default ones; `STORAGE_EMULATOR_HOST` points at an emulator in place of
the service.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import requests
from filelock import FileLock
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage import Bucket, Client

from calib_core.errors import CalibError, ConfigError, DataFormatError
from calib_core.runtime.progress import say
from calib_core.storage.files import cache_dir, sha256_json, whole_file, whole_folder
from calib_core.storage.gcs_transfer import (
    OWN,
    StoredObject,
    crc32c_file,
    download,
    in_parallel,
    is_sliced,
    put,
    remove,
    retrying,
    upload,
)

MANIFEST = f"{OWN}manifest.json"
ATTEMPTS = 4
PAUSE_S = 0.5
"""How often a folder that changes while it is read is looked at anew, and the pause after the first time."""

_URI = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a URI names: one object, or a folder's objects by their paths below it.

    Attributes:
        label: The object's or folder's own name.
        objects: By path below the folder; a lone object is under "".
    """

    label: str
    objects: dict[str, StoredObject]

    def pairs(self, root: Path) -> list[tuple[StoredObject, Path]]:
        """Each object, and the file that it belongs in where the whole goes to `root`."""
        return [(obj, root / path) for path, obj in self.objects.items()]


def split(uri: str) -> tuple[str, str]:
    """Bucket and name of a `gs://` URI; the name may be empty or end in a slash.

    Raises:
        ConfigError: it isn't one.
    """
    match = _URI.fullmatch(uri)
    if not match:
        raise ConfigError(f"{uri}: not a URI of Google Cloud Storage; write gs://bucket/name")
    name = (match[2] or "").lstrip("/")
    if {".", ".."} & set(name.split("/")):
        raise ConfigError(f"{uri}: . and .. mean nothing in a bucket; write the name without them")
    return match[1], name


def fetch(uri: str, into: Path | None) -> Path:
    """Download an object or folder, whole or not at all; see `calib_core.storage.uris.fetch`."""
    bucket = _bucket(uri)
    with _reported(uri):
        for attempt in range(ATTEMPTS):
            try:
                found = _find(bucket, uri)
                return _download_into(bucket, found, into) if into else _download_cached(bucket, found)
            except (api.NotFound, _ChangedError) as error:  # replaced between look and download: look again
                if isinstance(error, api.NotFound) and not _bucket_there(bucket):
                    raise
                changed = error
                time.sleep(random.uniform(0.2, 1.0) * PAUSE_S * 2**attempt)  # noqa: S311 (spreads readers out)
    if isinstance(changed, _ChangedError):
        raise changed
    raise DataFormatError(f"{uri}: changed each time while it was read; try again when no one writes there")


def publish(local: Path, uri: str) -> None:
    """Upload a file or folder, whole or not at all; see `calib_core.storage.uris.publish`."""
    bucket, name = _bucket(uri), _object_name(uri.rstrip("/"))
    with _reported(uri):
        if local.is_dir():
            _publish_folder(bucket, local, name)
        else:
            there = bucket.get_blob(name, **retrying())
            upload(bucket, name, local, expected=int(there.generation) if there else 0)


def check_target(uri: str) -> None:
    """Refuse a place to publish to that can't be seen from here: its name, the bucket or the permission.

    Raises:
        ConfigError: what is wrong.
    """
    bucket, name = _bucket(uri), _object_name(uri.rstrip("/"))
    with _reported(uri):
        _read(bucket, f"{name}/{MANIFEST}")


def exists(uri: str) -> bool:
    """Whether an object, or a folder that is whole, is there."""
    with _reported(uri):
        try:
            return bool(_find(_bucket(uri), uri).objects)
        except DataFormatError:
            return False


def list_files(uri: str) -> list[tuple[str, int, str]]:
    """URI, size in bytes and generation of every object below a folder, or of the one object, sorted."""
    bucket, name = _bucket(uri), split(uri)[1]
    with _reported(uri):
        lone = bucket.get_blob(name, **retrying()) if name and not name.endswith("/") else None
        objects = {"": StoredObject.of(lone)} if lone else _listed(bucket, _folder(name))
        return sorted(
            (f"gs://{bucket.name}/{obj.name}", obj.size_bytes, str(obj.generation))
            for path, obj in objects.items()
            if not any(part.startswith(".") for part in path.split("/"))
        )


def read_versioned(uri: str) -> tuple[bytes, str] | None:
    """Content and generation of an object; None where there is none."""
    bucket, name = _bucket(uri), _object_name(uri)
    with _reported(uri):
        return _read(bucket, name)


def write_versioned(uri: str, data: bytes, expected: str | None) -> str:
    """Write an object if it still has the generation that was read; see `calib_core.storage.uris`."""
    bucket, name = _bucket(uri), _object_name(uri)
    with _reported(uri):
        return str(put(bucket, name, data, expected=int(expected or 0)).generation)


def delete(uri: str) -> None:
    """Delete an object or all objects below a folder, its manifest last."""
    bucket, name = _bucket(uri), _object_name(uri.rstrip("/"))
    with _reported(uri):
        remove(bucket, name)
        names = [blob.name for blob in bucket.list_blobs(prefix=f"{name}/", **retrying())]
        in_parallel(lambda each: remove(bucket, each), [n for n in names if n != f"{name}/{MANIFEST}"])
        remove(bucket, f"{name}/{MANIFEST}")


def _find(bucket: Bucket, uri: str) -> _Found:
    """The objects that a URI names, as they are now.

    Raises:
        DataFormatError: there are none, or they are a folder in part.
    """
    name = split(uri)[1]
    label = PurePosixPath(name).name or bucket.name
    if name and not name.endswith("/") and (blob := bucket.get_blob(name, **retrying())):
        return _Found(label=label, objects={"": StoredObject.of(blob)})
    objects = _listed(bucket, _folder(name))
    manifest = _read(bucket, f"{_folder(name)}{MANIFEST}")
    if manifest:
        objects = _as_published(uri, manifest[0], objects)
    objects = {
        path: obj for path, obj in objects.items() if not path.startswith(OWN) and f"/{OWN}" not in path
    }
    if not objects:
        raise DataFormatError(f"{uri}: no such object, and none below {uri.rstrip('/')}/; check the name")
    if bad := sorted(path for path in objects if not _can_be_file(path, objects)):
        raise DataFormatError(f"{uri}: object {bad[0]!r} can't be a file below a folder; rename it")
    return _Found(label=label, objects=objects)


def _can_be_file(path: str, others: Container[str]) -> bool:
    """Whether an object's path is one below a folder, with no other object where it needs a folder."""
    plain = not {"", ".", ".."} & set(path.split("/"))
    return plain and not any(str(parent) in others for parent in PurePosixPath(path).parents)


def _as_published(uri: str, manifest: bytes, objects: dict[str, StoredObject]) -> dict[str, StoredObject]:
    """Those objects that a folder's manifest names.

    Raises:
        DataFormatError: the folder isn't whole yet, or no longer, or this is no manifest.
    """
    at = f"{uri.rstrip('/')}/{MANIFEST}"
    try:
        content = json.loads(manifest)
        whole = content["state"] == "whole"
        named = {e["path"]: (e.get("size_bytes"), e.get("crc32c")) for e in content["objects"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataFormatError(f"{at}: not a manifest; delete it, or publish the folder again") from None
    if not whole:
        raise DataFormatError(
            f"{uri}: is being written since {content.get('time')}, or its writer stopped half-way ({at}); "
            "wait for it, or publish the folder again"
        )
    there = {path: (obj.size_bytes, obj.crc32c) for path, obj in objects.items()}
    if other := sorted(path for path, content in named.items() if there.get(path) != content):
        raise _ChangedError(
            f"{uri}: {other[0]} is not as it was published ({len(other)} of {len(named)} objects differ); "
            f"publish the folder again, or delete {at} to take what is there"
        )
    return {path: objects[path] for path in named}


def _download_cached(bucket: Bucket, found: _Found) -> Path:
    """Download into the cache, where each version of an object or folder has a place of its own.

    Objects that an interrupted download has brought there already are not fetched again.
    """
    contents = [[path, *vars(obj).values()] for path, obj in sorted(found.objects.items())]
    place = cache_dir() / "gcs" / sha256_json([bucket.name, found.label, contents])[:32]
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.is_dir():
            part = place.with_suffix(".part")
            _download_pairs(bucket, found.pairs(part / found.label))
            part.replace(place)
    return place / found.label


def _download_into(bucket: Bucket, found: _Found, into: Path) -> Path:
    target = into / found.label
    with whole_file(target) if "" in found.objects else whole_folder(target) as temporary:
        _download_pairs(bucket, found.pairs(temporary))
    return target


def _download_pairs(bucket: Bucket, pairs: list[tuple[StoredObject, Path]]) -> None:
    for path in {path.parent for _, path in pairs}:
        path.mkdir(parents=True, exist_ok=True)
    total_bytes = sum(obj.size_bytes for obj, _ in pairs)
    if is_sliced(total_bytes):
        say(f"gs://{bucket.name}/{pairs[0][0].name}: {len(pairs)} objects, {total_bytes / 1e6:.0f} MB")
    download(bucket, pairs)


def _publish_folder(bucket: Bucket, local: Path, name: str) -> None:
    paths = sorted(path for path in local.rglob("*") if path.is_file() and path.name != MANIFEST)
    if not paths:
        raise DataFormatError(f"{local}: the folder is empty, so there is nothing to publish")
    if bucket.get_blob(name, **retrying()):
        raise ConfigError(f"gs://{bucket.name}/{name}: is an object, not a folder; choose another name")
    files = {path.relative_to(local).as_posix(): path for path in paths}
    there = _listed(bucket, f"{name}/")
    before = _read(bucket, f"{name}/{MANIFEST}")
    stamp = {"format": 1, "time": datetime.now(UTC).isoformat(timespec="seconds")}

    def mark(state: dict[str, Any], expected: int) -> int:
        data = json.dumps({**stamp, **state}, indent=2).encode()
        return put(bucket, f"{name}/{MANIFEST}", data, expected=expected).generation

    old = _named(before[0]) if before else set()
    may_be_there = [{"path": path} for path in sorted(old | set(files))]
    generation = mark({"state": "writing", "objects": may_be_there}, int(before[1]) if before else 0)

    def send(path: str) -> dict[str, Any]:
        stored, file = there.get(path), files[path]
        content = file.stat().st_size, crc32c_file(file)
        if stored is None or (stored.size_bytes, stored.crc32c) != content:
            stored = upload(bucket, f"{name}/{path}", file, expected=stored.generation if stored else 0)
        return {"path": path, "size_bytes": stored.size_bytes, "crc32c": stored.crc32c}

    large = {path for path, file in files.items() if is_sliced(file.stat().st_size)}
    objects = in_parallel(send, sorted(files.keys() - large)) + [send(path) for path in sorted(large)]
    mark({"state": "whole", "objects": objects}, generation)
    in_parallel(lambda path: remove(bucket, f"{name}/{path}"), sorted(old - set(files)))


def _named(manifest: bytes) -> set[str]:
    """Paths that an earlier publication may have left; none where this is no manifest."""
    try:
        return {entry["path"] for entry in json.loads(manifest)["objects"]}
    except (ValueError, KeyError, TypeError):
        return set()


def _read(bucket: Bucket, name: str) -> tuple[bytes, str] | None:
    """Content and generation of an object, which belong together; None where there is none."""
    while blob := bucket.get_blob(name, **retrying()):
        with contextlib.suppress(api.NotFound):  # replaced in between: read the new one
            pinned = bucket.blob(name, generation=blob.generation)
            data = pinned.download_as_bytes(raw_download=True, checksum="crc32c", **retrying())
            return data, str(blob.generation)
    if not _bucket_there(bucket):
        raise api.NotFound(f"bucket {bucket.name}")
    return None


def _listed(bucket: Bucket, prefix: str) -> dict[str, StoredObject]:
    """Objects below a prefix by their path below it, without the empty ones that stand for folders."""
    fields = "items(name,size,crc32c,generation),nextPageToken"
    blobs = bucket.list_blobs(prefix=prefix, fields=fields, **retrying())
    return {
        blob.name.removeprefix(prefix): StoredObject.of(blob) for blob in blobs if not blob.name.endswith("/")
    }


def _folder(name: str) -> str:
    return f"{name.rstrip('/')}/" if name else ""


def _object_name(uri: str) -> str:
    name = split(uri)[1]
    if not name or name.endswith("/"):
        raise ConfigError(f"{uri}: names no object; give gs://bucket/name")
    return name


def _bucket(uri: str) -> Bucket:
    with _reported(uri):
        return _client(os.environ.get("STORAGE_EMULATOR_HOST")).bucket(split(uri)[0])


@functools.cache
def _client(emulator: str | None) -> Client:
    """The one client of this process, or of an emulator."""
    return Client(project=None)  # objects need no project


@contextlib.contextmanager
def _reported(uri: str) -> Iterator[None]:
    """Turn what the client library raises into one message with what to do."""
    bucket = f"gs://{split(uri)[0]}"
    try:
        yield
    except CalibError:
        raise
    except api.NotFound:
        raise ConfigError(f"{uri}: there is no bucket {bucket}; check its name, or create it") from None
    except (api.Forbidden, api.Unauthorized) as error:
        raise ConfigError(
            f"{uri}: no permission ({_reason(error)}); give this account the role Storage Object User on "
            f"{bucket} (Storage Object Viewer is enough to read)"
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
            f"{uri}: Google Cloud Storage can't be reached, or does not answer ({_reason(error)}); check the "
            "network and try again"
        ) from None
    except api.GoogleAPICallError as error:
        raise ConfigError(f"{uri}: Google Cloud Storage refused this ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """First line of an error's text, or of what it was caused by."""
    cause = getattr(error, "cause", None) or error
    text = str(getattr(cause, "message", None) or cause).strip().partition("\n")[0]
    return text[:300] or type(cause).__name__


def _bucket_there(bucket: Bucket) -> bool:
    """Whether there is a bucket; listing it needs no more rights than reading its objects."""
    try:
        list(bucket.list_blobs(max_results=1, **retrying()))
    except api.NotFound:
        return False
    return True


class _ChangedError(DataFormatError):
    """A folder's objects are not those that its manifest names: it may be changing at this moment."""

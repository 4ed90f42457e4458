"""Files and folders by path or by URI: a local path, or an object or folder in a bucket.

Buckets are those of Google Cloud Storage (`gs://bucket/name`), of S3 (`s3://bucket/name`), and of the S3
service in a cluster, MinIO or SeaweedFS, as Kubeflow Pipelines names it (`minio://bucket/name`).

This is the one place where a URI becomes a local path and back. Readers, commands and steps call `fetch`
before they read and `publish` after they wrote, so that everything between them knows local paths only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock

from calib_core.errors import CalibError, ConfigError, DataFormatError, StaleVersionError
from calib_core.storage import objects
from calib_core.storage.bucket import Bucket
from calib_core.storage.disks import check_writable
from calib_core.storage.files import sha256_file, whole_file, whole_folder
from calib_core.storage.leftovers import scratch_folder
from calib_core.storage.locations import SERVICES, Location, locate, mounted, scheme_of
from calib_core.storage.replacing import settle

_STORES = {"gs": "gcs", "s3": "s3", "minio": "s3"}
"""The module, and the extra, that speaks to what a scheme stands for."""

_LIBRARIES = {"gcs": "google-cloud-storage", "s3": "boto3"}


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file below a folder.

    Attributes:
        uri: Where it is, as `fetch` takes it.
        path: Its path below the folder; "" where the folder's name is the file's own.
        size_bytes: Its size.
        version: What changes when its content does: an object's generation or ETag, a local file's SHA-256.
    """

    uri: str
    path: str
    size_bytes: int
    version: str


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether this names something in a bucket (`gs://`, `s3://`, `minio://`), which has to be fetched."""
    return scheme_of(uri) in SERVICES


def as_uri(path: str | os.PathLike[str]) -> str:
    """The URI of what a path below a bucket's mount names; anything else as it is.

    >>> as_uri("/minio/mlpipeline/v2/model"), as_uri("/gcs/b/m"), as_uri("models/m")
    ('minio://mlpipeline/v2/model', 'gs://b/m', 'models/m')
    """
    text = os.fspath(path)
    location = None if scheme_of(text) else mounted(text)
    return location.uri if location else text


def fetch(uri: str | os.PathLike[str], *, into: Path | None = None) -> Path:
    """The local path of a file or folder; what is remote is downloaded first, atomically.

    Downloads are held to checksums and kept below `$CALIB_CACHE` by their version, so that what hasn't
    changed is downloaded once.

    Args:
        uri: a path, which is returned as it is, a `file://` URI, or the URI of an object, or of all objects
            below a folder, in a bucket. `/gcs/bucket/name`, `/s3/...` and `/minio/...`, as KFP and Vertex
            name mounted buckets, are paths where there is something at them, and URIs elsewhere.
        into: folder that gets the download, under its own name, in place of the cache.

    Raises:
        DataFormatError: nothing is there, or a folder is there in part only.
        ConfigError: the URI's scheme is unknown, the bucket is missing, closed to these credentials or can't
            be reached, or the store's library is not installed.
    """
    location = locate(uri)
    if location is None:
        path = _local(uri)
        if not path.is_file():
            settle(path)
        location = None if path.exists() else mounted(path if scheme_of(uri) else uri)
        if location is None:
            return path
    return objects.fetch(_open(location), location, into)


def publish(local: Path, uri: str | os.PathLike[str]) -> None:
    """Put a local file or folder at a path or URI, atomically.

    A folder in a bucket gets a manifest, `.calib-manifest.json`: it says "writing" before the first and
    "whole" after the last object, and `fetch` takes the objects that a whole one names.

    Raises:
        DataFormatError: `local` is not there.
        StaleVersionError: another process published to the same folder meanwhile.
        ConfigError: as in `fetch`.
    """
    if not local.exists():
        raise DataFormatError(f"{local}: no such file or folder, so there is nothing to publish to {uri}")
    if location := locate(uri):
        objects.publish(_open(location), location, local)
    elif local.is_dir():
        with whole_folder(_local(uri)) as folder:
            shutil.copytree(local, folder, dirs_exist_ok=True)
    else:
        with whole_file(_local(uri)) as file:
            shutil.copyfile(local, file)


@contextlib.contextmanager
def published(uri: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a local path to write a file or folder to; it is published when the block ends without an error.

    For a local `uri` that is the path itself, which the block is to write atomically. A place that can't be
    written to is refused before the block. What the block has made is kept if the bucket can't take it
    afterwards, and the message says where.

    Raises:
        CalibError: as `publish` says; nothing is published where the block fails or writes nothing.
    """
    location = locate(uri)
    if location is None:
        check_writable(_local(uri))
        yield _local(uri)
        return
    objects.check_target(_open(location), location)  # before the work, not after it
    with scratch_folder() as scratch:
        path = scratch / location.label
        yield path
        try:
            publish(path, uri)
        except CalibError as error:
            if not path.exists():
                raise
            kept = Path(tempfile.mkdtemp(prefix="calib-kept-")) / path.name
            path.replace(kept)
            raise type(error)(
                f"{error}; what was made is kept at {kept}, copy it there once the problem is fixed"
            ) from error


def require_local(path: Path) -> None:
    """Refuse a URI where only a folder on this machine will do.

    Raises:
        ConfigError: it is one.
    """
    if is_remote(path):
        raise ConfigError(
            f"{path}: must be a folder on this machine; give one, and copy it to the bucket later"
        )


def join(uri: str | os.PathLike[str], name: str) -> str:
    """The path or URI of a file in a folder."""
    location = locate(uri)
    return location.at(location.prefix + name).uri if location else str(_local(uri) / name)


def exists(uri: str | os.PathLike[str]) -> bool:
    """Whether a file, or a folder with something in it, is there.

    Raises:
        ConfigError: as in `fetch`.
    """
    location = locate(uri)
    return objects.exists(_open(location), location) if location else _local(uri).exists()


def list_files(uri: str | os.PathLike[str]) -> list[StoredFile]:
    """All files below a folder, at any depth, sorted by URI; none if the folder isn't there.

    Names that begin with a dot, as temporary files' do, are left out.

    Raises:
        ConfigError: as in `fetch`.
    """
    if location := locate(uri):
        found = [
            StoredFile(
                uri=location.at(obj.name).uri, path=path, size_bytes=obj.size_bytes, version=obj.version
            )
            for path, obj in objects.list_files(_open(location), location).items()
        ]
    else:
        root = _local(uri)
        paths = [root] if root.is_file() else root.rglob("*")
        found = [
            StoredFile(
                uri=str(path),
                path=path.relative_to(root).as_posix() if path != root else "",
                size_bytes=path.stat().st_size,
                version=sha256_file(path),
            )
            for path in paths
            if path.is_file() and not _is_hidden(path.relative_to(root).as_posix())
        ]
    return sorted((file for file in found if not _is_hidden(file.path)), key=lambda file: file.uri)


def list_folders(uri: str | os.PathLike[str]) -> list[str]:
    """Names of the folders in a folder, sorted; those in a bucket that hold nothing aren't there.

    Raises:
        ConfigError: as in `fetch`.
    """
    if is_remote(uri):
        return sorted({file.path.partition("/")[0] for file in list_files(uri) if "/" in file.path})
    root_path = _local(uri)
    names = [path.name for path in root_path.iterdir() if path.is_dir()] if root_path.is_dir() else []
    return sorted(name for name in names if not name.startswith("."))


def read_versioned(uri: str | os.PathLike[str]) -> tuple[bytes, str] | None:
    """Content and version of a small file; None if there is none.

    Returns:
        The bytes, and the token that `write_versioned` takes as `expected`: the object's generation or ETag,
        or the SHA-256 of a local file.

    Raises:
        ConfigError: as in `fetch`, or the path is on a mounted bucket.
    """
    if location := locate(uri):
        return objects.read_versioned(_open(location), location)
    return _read_local(_lockable(uri))


def write_versioned(uri: str | os.PathLike[str], data: bytes, *, expected: str | None) -> str:
    """Write a small file if it is still at the version that was read; of those who race, one writes.

    Args:
        uri: path or URI of the file.
        data: its new content.
        expected: version that `read_versioned` gave; None if there was no file.

    Returns:
        The new version.

    Raises:
        StaleVersionError: the file has changed meanwhile; read it again and decide again.
        ConfigError: as in `fetch`, the path is on a mounted bucket, or the server honours no conditions.
    """
    if location := locate(uri):
        return objects.write_versioned(_open(location), location, data, expected)
    path = _lockable(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        found = _read_local(path)
        if (found[1] if found else None) != expected:
            raise StaleVersionError(
                f"{path}: changed since it was read; nothing was written, read it again and decide again"
            )
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def delete(uri: str | os.PathLike[str]) -> None:
    """Remove a file, or a folder with all that is in it; what isn't there counts as removed.

    Raises:
        ConfigError: as in `fetch`.
    """
    if location := locate(uri):
        objects.delete(_open(location), location)
        return
    path = _local(uri)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _open(location: Location) -> Bucket:
    """The bucket of a place; a store's library, which takes a second, is imported with its first URI."""
    name = _STORES[location.scheme]
    try:
        store = importlib.import_module(f"calib_core.storage.{name}")
    except ImportError as error:
        if not (error.name or "").startswith(("google", "boto", "kubernetes", "yaml")):
            raise
        raise ConfigError(
            f"{location.scheme}:// paths need {_LIBRARIES[name]}; install it with: pip install "
            f"'calib-core[{name}]'"
        ) from None
    bucket: Bucket = store.open_bucket(location)
    return bucket


def _local(uri: str | os.PathLike[str]) -> Path:
    """The local path that a path or a `file://` URI names."""
    text, scheme = os.fspath(uri), scheme_of(uri)
    if not scheme:
        return Path(text)
    host, slash, path = text[len("file://") :].partition("/")
    if scheme != "file" or not text[len(scheme) :].startswith("://") or host not in ("", "localhost"):
        raise ConfigError(
            f"{text}: can't be read or written; give a local path, or a URI that begins with "
            f"{', '.join(f'{name}://' for name in SERVICES)} or file:///"
        )
    return Path(unquote(slash + path))


def _is_hidden(path: str) -> bool:
    """Whether a part of a path begins with a dot, `.` and `..` themselves apart."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def _lockable(uri: str | os.PathLike[str]) -> Path:
    """A local path on which a lock holds for all who may write it."""
    path = _local(uri)
    if location := mounted(path):
        raise ConfigError(
            f"{path}: a mounted bucket has no locks that other machines see; "
            f"write {location.uri} for this file"
        )
    return path


def _read_local(path: Path) -> tuple[bytes, str] | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data, hashlib.sha256(data).hexdigest()

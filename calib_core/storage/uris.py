"""Files and folders by path or by URI: a local path, or `gs://bucket/name` on Google Cloud Storage.

This is the one place where a URI becomes a local path and back. Readers, commands and steps call `fetch`
before they read and `publish` after they wrote, so that everything between them knows local paths only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from urllib.parse import unquote, urlparse

from filelock import FileLock

from calib_core.errors import ConfigError, DataFormatError, StaleVersionError
from calib_core.storage.files import sha256_file, whole_file, whole_folder

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file below a folder.

    Attributes:
        uri: Where it is, as `fetch` takes it.
        size_bytes: Its size.
        version: What changes when its content does: an object's generation, a local file's SHA-256.
    """

    uri: str
    size_bytes: int
    version: str


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether this names something on Google Cloud Storage (`gs://`), which has to be fetched."""
    return os.fspath(uri).startswith("gs:/")


def fetch(uri: str | os.PathLike[str], *, into: Path | None = None) -> Path:
    """The local path of a file or folder; what is remote is downloaded first, whole or not at all.

    Downloads are checked against the bucket's checksums and kept below `$CALIB_CACHE` by their generation, so
    that what hasn't changed is downloaded once.

    Args:
        uri: a path, which is returned as it is, a `file://` URI, or `gs://bucket/name` of an object or of all
            objects below `name/`. `/gcs/bucket/name`, as KFP and Vertex name a mounted bucket, is a path
            where it is mounted, and `gs://bucket/name` elsewhere.
        into: folder that gets the download, under its own name, in place of the cache.

    Raises:
        DataFormatError: nothing is there, or a folder is there in part only.
        ConfigError: the URI's scheme is unknown, the bucket is missing, closed to these credentials or can't
            be reached, or google-cloud-storage is not installed.
    """
    if is_remote(uri):
        return Path(_gcs().fetch(_gs_uri(uri), into))
    path = _local(uri)
    if path.is_absolute() and path.parts[1:2] == ("gcs",) and not Path(*path.parts[:3]).exists():
        return fetch(_mounted_uri(path), into=into)
    return path


def publish(local: Path, uri: str | os.PathLike[str]) -> None:
    """Put a local file or folder at a path or URI, whole or not at all.

    A folder on Google Cloud Storage gets a manifest, `.calib-manifest.json`: it says "writing" before the
    first and "whole" after the last object, and `fetch` takes the objects that a whole one names.

    Raises:
        DataFormatError: `local` is not there.
        StaleVersionError: another process published to the same folder meanwhile.
        ConfigError: as in `fetch`.
    """
    if not local.exists():
        raise DataFormatError(f"{local}: no such file or folder, so there is nothing to publish to {uri}")
    if is_remote(uri):
        _gcs().publish(local, _gs_uri(uri))
    elif local.is_dir():
        with whole_folder(_local(uri)) as folder:
            shutil.copytree(local, folder, dirs_exist_ok=True)
    else:
        with whole_file(_local(uri)) as file:
            shutil.copyfile(local, file)


@contextlib.contextmanager
def published(uri: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a local path to write a file or folder to; it is published when the block ends without an error.

    For a local `uri` that is the path itself, which the block is to write whole or not at all.

    Raises:
        CalibError: as `publish` says; nothing is published where the block fails or writes nothing.
    """
    if not is_remote(uri):
        yield _local(uri)
        return
    _gcs().check_target(_gs_uri(uri))  # before the work, not after it
    with tempfile.TemporaryDirectory(prefix="calib-") as scratch:
        path = Path(scratch) / PurePosixPath(_gs_uri(uri)).name
        yield path
        publish(path, uri)


def require_local(path: Path) -> None:
    """Refuse a URI where only a folder on this machine will do.

    Raises:
        ConfigError: it is one.
    """
    if is_remote(path):
        raise ConfigError(
            f"{_gs_uri(path)}: must be a folder on this machine; give one, and copy it to the bucket later"
        )


def join(uri: str | os.PathLike[str], name: str) -> str:
    """The path or URI of a file in a folder."""
    return f"{_gs_uri(uri).rstrip('/')}/{name}" if is_remote(uri) else str(_local(uri) / name)


def exists(uri: str | os.PathLike[str]) -> bool:
    """Whether a file, or a folder with something in it, is there.

    Raises:
        ConfigError: as in `fetch`.
    """
    return bool(_gcs().exists(_gs_uri(uri))) if is_remote(uri) else _local(uri).exists()


def list_files(uri: str | os.PathLike[str]) -> list[StoredFile]:
    """All files below a folder, at any depth, sorted by URI; none where the folder isn't there.

    Names that begin with a dot, as temporary files' do, are left out.

    Raises:
        ConfigError: as in `fetch`.
    """
    if is_remote(uri):
        return [
            StoredFile(uri=name, size_bytes=size, version=version)
            for name, size, version in _gcs().list_files(_gs_uri(uri))
        ]
    root = _local(uri)
    paths = [root] if root.is_file() else root.rglob("*")
    return sorted(
        (
            StoredFile(uri=str(path), size_bytes=path.stat().st_size, version=sha256_file(path))
            for path in paths
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
        ),
        key=lambda file: file.uri,
    )


def list_folders(uri: str | os.PathLike[str]) -> list[str]:
    """Names of the folders in a folder, sorted; those in a bucket that hold nothing aren't there.

    Raises:
        ConfigError: as in `fetch`.
    """
    if is_remote(uri):
        root = f"{_gs_uri(uri).rstrip('/')}/"
        paths = [file.uri.removeprefix(root) for file in list_files(uri)]
        return sorted({path.partition("/")[0] for path in paths if "/" in path})
    root_path = _local(uri)
    names = [path.name for path in root_path.iterdir() if path.is_dir()] if root_path.is_dir() else []
    return sorted(name for name in names if not name.startswith("."))


def read_versioned(uri: str | os.PathLike[str]) -> tuple[bytes, str] | None:
    """Content and version of a small file; None where there is none.

    Returns:
        The bytes, and the token that `write_versioned` takes as `expected`: the object's generation, or the
        SHA-256 of a local file.

    Raises:
        ConfigError: as in `fetch`, or the path is on a mounted bucket.
    """
    if is_remote(uri):
        found: tuple[bytes, str] | None = _gcs().read_versioned(_gs_uri(uri))
        return found
    return _read_local(_lockable(uri))


def write_versioned(uri: str | os.PathLike[str], data: bytes, *, expected: str | None) -> str:
    """Write a small file if it is still at the version that was read; of those who race, one writes.

    Args:
        uri: path or `gs://` URI of the file.
        data: its new content.
        expected: version that `read_versioned` gave; None where there was no file.

    Returns:
        The new version.

    Raises:
        StaleVersionError: the file has changed meanwhile; read it again and decide anew.
        ConfigError: as in `fetch`, or the path is on a mounted bucket.
    """
    if is_remote(uri):
        return str(_gcs().write_versioned(_gs_uri(uri), data, expected))
    path = _lockable(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        found = _read_local(path)
        if (found[1] if found else None) != expected:
            raise StaleVersionError(
                f"{path}: changed since it was read; nothing was written, read it again and decide anew"
            )
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def delete(uri: str | os.PathLike[str]) -> None:
    """Remove a file, or a folder with all that is in it; what isn't there counts as removed.

    Raises:
        ConfigError: as in `fetch`.
    """
    if is_remote(uri):
        _gcs().delete(_gs_uri(uri))
        return
    path = _local(uri)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _gcs() -> ModuleType:
    """The part that speaks to Google Cloud Storage, imported when the first `gs://` is met."""
    try:
        from calib_core.storage import gcs  # noqa: PLC0415 (takes a second, and only gs:// needs it)
    except ImportError as error:
        if not (error.name or "").startswith("google"):
            raise
        raise ConfigError(
            "gs:// paths need google-cloud-storage; install it with: pip install 'calib-core[gcs]'"
        ) from None
    return gcs


def _gs_uri(uri: str | os.PathLike[str]) -> str:
    """The URI as text; `Path` makes one slash of two, which is mended."""
    return re.sub(r"^gs:/+", "gs://", os.fspath(uri))


def _local(uri: str | os.PathLike[str]) -> Path:
    """The local path that a path or a `file://` URI names."""
    text = os.fspath(uri)
    scheme = _SCHEME.match(text)
    if not scheme:
        return Path(text)
    if scheme[1].lower() != "file":
        raise ConfigError(
            f"{text}: {scheme[1]}:// can't be read or written; give a local path or gs://bucket/name"
        )
    return Path(unquote(urlparse(text).path))


def _mounted_uri(path: Path) -> str:
    """The URI of what is below a mounted bucket."""
    return f"gs://{'/'.join(path.parts[2:])}"


def _lockable(uri: str | os.PathLike[str]) -> Path:
    """A local path on which a lock holds for all who may write it."""
    path = _local(uri)
    if path.is_absolute() and path.parts[1:2] == ("gcs",):
        raise ConfigError(
            f"{path}: a mounted bucket has no locks that other machines see; "
            f"write {_mounted_uri(path)} for this file"
        )
    return path


def _read_local(path: Path) -> tuple[bytes, str] | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data, hashlib.sha256(data).hexdigest()

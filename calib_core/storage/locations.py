"""Where something lies: the parts of a bucket's URI, and the paths at which buckets are mounted.

A key goes through as it is. Nothing in it is decoded, joined or left out: `gs://bucket//q.jsonl` has the key
`/q.jsonl`, and percent signs, `#`, `?`, `.` and `..` are characters like others, as they are to the services.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from calib_core.errors import ConfigError, short

SERVICES = {
    "gs": "Google Cloud Storage",
    "s3": "S3",
    "minio": "an S3 service in the cluster (MinIO, SeaweedFS)",
}
"""What a URI's scheme stands for."""

MOUNTS = {"gcs": "gs", "s3": "s3", "minio": "minio"}
"""Folders below `/` at which KFP and Vertex have a bucket's objects as files, and the scheme of each."""

_BUCKETS = {
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
    "s3": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]"),
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_LABEL_BYTES = 200
"""The longest last part of a key that a file is called by here; file systems take 255 bytes with suffixes."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """An object, or a folder of objects, in a bucket.

    Attributes:
        scheme: `gs`, `s3` or `minio`.
        bucket: Its name.
        key: The object's name, exactly; of a folder with or without the slash that ends it. "" is the bucket.
    """

    scheme: str
    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """The URI that names this."""
        return f"{self.scheme}://{self.bucket}/{self.key}"

    @property
    def prefix(self) -> str:
        """What the keys of all objects below this folder begin with."""
        return self.key if not self.key or self.key.endswith("/") else f"{self.key}/"

    @property
    def label(self) -> str:
        """Name of this as a file or folder of this machine: the key's last part where that can be one."""
        name = self.key.rstrip("/").rpartition("/")[2] or self.bucket
        if name in (".", "..") or "\0" in name or len(name.encode()) > _LABEL_BYTES:
            suffix = PurePosixPath(name).suffix[:20] if len(name) > 2 else ""
            return f"object-{hashlib.sha256(self.key.encode()).hexdigest()[:16]}{suffix}"
        return name

    def at(self, key: str) -> Location:
        """Another key of the same bucket."""
        return Location(scheme=self.scheme, bucket=self.bucket, key=key)

    def require_name(self) -> Location:
        """This, if it is more than a bucket.

        Raises:
            ConfigError: it isn't.
        """
        if not self.key:
            raise ConfigError(f"{self.uri}: names a bucket; give {self.scheme}://bucket/name")
        return self

    def require_object(self) -> Location:
        """This, if it can be an object's name.

        Raises:
            ConfigError: it is a bucket's name, or ends in a slash as folders do.
        """
        if not self.key or self.key.endswith("/"):
            raise ConfigError(f"{self.uri}: names no object; give {self.scheme}://bucket/name")
        return self


def scheme_of(uri: str | os.PathLike[str]) -> str:
    """The scheme of a URI, in lower case; "" for a path."""
    match = _SCHEME.match(os.fspath(uri))
    return match[1].lower() if match else ""


def locate(uri: str | os.PathLike[str]) -> Location | None:
    """The place in a bucket that a URI names; None for paths and other schemes.

    Raises:
        ConfigError: the URI has a bucket's scheme, and isn't one, or came as a `Path`, which rewrites it.
    """
    text, scheme = os.fspath(uri), scheme_of(uri)
    if scheme not in SERVICES:
        return None
    if not isinstance(uri, str):
        raise ConfigError(
            f"{text}: is a URI in a Path, which makes one slash of two; give the URI as text instead"
        )
    bucket, _, key = text[len(scheme) + 3 :].partition("/")
    if not text.startswith(f"{scheme}://") or not _BUCKETS["gs" if scheme == "gs" else "s3"].fullmatch(
        bucket
    ):
        raise ConfigError(f"{text}: not a URI of {SERVICES[scheme]}; write {scheme}://bucket/name")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{short(text)}: the name holds half of a character (a lone surrogate); write it as valid Unicode"
        ) from None
    return Location(scheme=scheme, bucket=bucket, key=key)


def mounted(path: str | os.PathLike[str]) -> Location | None:
    """The place in a bucket that a path below a mount names; None for other paths.

    A path as text keeps its empty segments and its dots, which belong to a key; a `Path` has lost them.

    >>> mounted("/minio/mlpipeline/v2//model").uri
    'minio://mlpipeline/v2//model'
    """
    parts = os.fspath(path).split("/")
    if len(parts) < 3 or parts[0] or parts[1] not in MOUNTS or not parts[2]:
        return None
    return Location(scheme=MOUNTS[parts[1]], bucket=parts[2], key="/".join(parts[3:]))

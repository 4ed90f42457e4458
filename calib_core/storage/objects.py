"""Files and folders as objects in a bucket, alike for every store: read whole, written atomically, cached.

A folder has a manifest, `.calib-manifest.json`: "writing" before its first and "whole" after its last object,
with size and CRC32C of each. Readers take the objects that a whole manifest names, or all objects where there
is none. What a store does with one object is behind
`calib_core.storage.bucket.Bucket`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from calib_core.errors import DataFormatError
from calib_core.storage.bucket import OWN, Bucket, GoneError, StoredObject, in_parallel
from calib_core.storage.disks import cache_dir
from calib_core.storage.files import sha256_json, whole_file, whole_folder
from calib_core.storage.locations import Location
from calib_core.storage.publishing import MANIFEST, listed, publish_folder, say_size, with_checksum

ATTEMPTS = 4
PAUSE_S = 0.5
"""How often a folder that changes while it is read is looked at again, and the pause after the first time."""


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


class _ChangedError(DataFormatError):
    """A folder's objects are not those that its manifest names: it may be changing at this moment."""


def fetch(bucket: Bucket, location: Location, into: Path | None) -> Path:
    """Download an object or folder atomically; see `calib_core.storage.uris.fetch`."""
    with bucket.reported(location.uri):
        for attempt in range(ATTEMPTS):
            try:
                found = _find(bucket, location)
                return _download_into(bucket, found, into) if into else _download_cached(bucket, found)
            except (GoneError, _ChangedError) as error:  # replaced between look and download: look again
                changed = error
                time.sleep(random.uniform(0.2, 1.0) * PAUSE_S * 2**attempt)  # noqa: S311 (spreads readers out)
    if isinstance(changed, _ChangedError):
        raise changed
    raise DataFormatError(
        f"{location.uri}: changed each time while it was read; try again when no one writes there"
    )


def publish(bucket: Bucket, location: Location, local: Path) -> None:
    """Upload a file or folder atomically; see `calib_core.storage.uris.publish`."""
    location.require_name()
    with bucket.reported(location.uri):
        if local.is_dir():
            publish_folder(bucket, local, location)
            return
        name = location.at(location.key.removesuffix("/")).require_object().key
        say_size(location.uri, [local.stat().st_size])
        there = bucket.stat(name)
        bucket.upload(name, local, expected=there.version if there else "")


def check_target(bucket: Bucket, location: Location) -> None:
    """Refuse a place to publish to that can't be seen from here: its name, the bucket or the permission.

    Raises:
        ConfigError: what is wrong.
    """
    location.require_name()
    with bucket.reported(location.uri):
        bucket.read(f"{location.prefix}{MANIFEST}")


def exists(bucket: Bucket, location: Location) -> bool:
    """Whether an object, or a folder that is whole, is there."""
    with bucket.reported(location.uri):
        try:
            return bool(_find(bucket, location).objects)
        except DataFormatError:
            return False


def list_files(bucket: Bucket, location: Location) -> dict[str, StoredObject]:
    """Objects below a folder by their paths below it; the one object of a lone one is under ""."""
    with bucket.reported(location.uri):
        name = location.key
        lone = bucket.stat(name) if name and not name.endswith("/") else None
        return {"": lone} if lone else listed(bucket, location.prefix)


def read_versioned(bucket: Bucket, location: Location) -> tuple[bytes, str] | None:
    """Content and version of an object; None if there is none."""
    with bucket.reported(location.uri):
        found = bucket.read(location.require_object().key)
        return found and (found[0], found[1].version)


def write_versioned(bucket: Bucket, location: Location, data: bytes, expected: str | None) -> str:
    """Write an object if it still has the version that was read; see `calib_core.storage.uris`."""
    with bucket.reported(location.uri):
        return bucket.swap(location.require_object().key, data, expected=expected or "").version


def delete(bucket: Bucket, location: Location) -> None:
    """Delete an object or all objects below a folder, its manifest last."""
    location.require_name()
    with bucket.reported(location.uri):
        if not location.key.endswith("/"):
            bucket.remove(location.key)
        manifest = f"{location.prefix}{MANIFEST}"
        names = [obj.name for obj in bucket.listed(location.prefix)]
        in_parallel(bucket.remove, [name for name in names if name != manifest])
        bucket.remove(manifest)
        bucket.abandon(location.prefix)


def _find(bucket: Bucket, location: Location) -> _Found:
    """The objects that a URI names, as they are now.

    Raises:
        DataFormatError: there are none, or they are a folder in part.
    """
    name, uri = location.key, location.uri
    if name and not name.endswith("/") and (obj := bucket.stat(name)):
        return _Found(label=location.label, objects={"": obj})
    objects = listed(bucket, location.prefix)
    manifest = bucket.read(f"{location.prefix}{MANIFEST}")
    if manifest:
        objects = _as_published(bucket, uri, manifest[0], objects)
    objects = {
        path: obj for path, obj in objects.items() if not path.startswith(OWN) and f"/{OWN}" not in path
    }
    if not objects:
        raise DataFormatError(
            f"{uri}: no such object, and none below {uri.removesuffix('/')}/; check the name"
        )
    if bad := sorted(path for path in objects if not _can_be_file(path, objects)):
        raise DataFormatError(
            f"{uri}: object {bad[0]!r} can't be a file below a folder; rename it, or fetch it by its own URI"
        )
    return _Found(label=location.label, objects=objects)


def _can_be_file(path: str, others: Container[str]) -> bool:
    """Whether an object's path is one below a folder, with no other object where it needs a folder."""
    plain = not {"", ".", ".."} & set(path.split("/")) and "\0" not in path
    return plain and not any(str(parent) in others for parent in PurePosixPath(path).parents)


def _as_published(
    bucket: Bucket, uri: str, manifest: bytes, objects: dict[str, StoredObject]
) -> dict[str, StoredObject]:
    """Those objects that a folder's manifest names, with the checksums that it states.

    Raises:
        DataFormatError: the folder isn't whole yet, or no longer, or this is no manifest.
    """
    at = f"{uri.removesuffix('/')}/{MANIFEST}"
    try:
        content = json.loads(manifest)
        whole, entries = content["state"] == "whole", {e["path"]: e for e in content["objects"]}
        named = {path: (e.get("size_bytes"), e.get("crc32c")) for path, e in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataFormatError(f"{at}: not a manifest; delete it, or publish the folder again") from None
    if not whole:
        raise DataFormatError(
            f"{uri}: is being written since {content.get('time')}, or its writer stopped half-way ({at}); "
            "wait for it, or publish the folder again"
        )
    there = {
        path: with_checksum(bucket, obj, entries[path])
        for path, obj in objects.items()
        if path in named and obj.size_bytes == named[path][0]
    }
    other = sorted(path for path, said in named.items() if not _agrees(there.get(path), said))
    if other:
        raise _ChangedError(
            f"{uri}: {other[0]} is not as it was published ({len(other)} of {len(named)} objects differ); "
            f"publish the folder again, or delete {at} to take what is there"
        )
    return {path: replace(there[path], crc32c=crc32c) for path, (_, crc32c) in named.items()}


def _agrees(obj: StoredObject | None, said: tuple[Any, Any]) -> bool:
    """Whether an object has a size and checksum; one whose checksum isn't known is held to it later."""
    return obj is not None and obj.size_bytes == said[0] and obj.crc32c in ("", said[1])


def _download_cached(bucket: Bucket, found: _Found) -> Path:
    """Download into the cache, where each version of an object or folder has a place of its own.

    Objects that an interrupted download has brought there already are not fetched again.
    """
    contents = [[path, *vars(obj).values()] for path, obj in sorted(found.objects.items())]
    place = cache_dir() / bucket.cache / sha256_json([bucket.identity, found.label, contents])[:32]
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
    say_size(f"{bucket.root}/{pairs[0][0].name}", [obj.size_bytes for obj, _ in pairs])
    bucket.download(pairs)

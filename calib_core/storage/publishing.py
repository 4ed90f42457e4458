"""A folder on its way into a bucket: of those who publish to one place at once one wins, and none mixes.

* Who begins writes the manifest, with a mark of its own, if no one has since it was read. Who began before is
  overtaken by that: the last write of its own manifest is refused.
* One who was overtaken may still be about to write an object, if that is as it was when it was looked at. So
  who finds a manifest that says "writing" leaves no object as it is: what is right already gets a new
  version.
* What only the manifest before has named is removed while the new one says "writing", each object on the
  condition of its version. Then the manifest says "whole".
* Who was overtaken removes the objects that it has brought and the manifest in force doesn't name.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calib_core.errors import ConfigError, DataFormatError, StaleVersionError
from calib_core.runtime.progress import say
from calib_core.storage.bucket import OWN, Bucket, StoredObject, in_parallel, is_sliced
from calib_core.storage.checksums import crc32c_file
from calib_core.storage.locations import Location

MANIFEST = f"{OWN}manifest.json"


def publish_folder(bucket: Bucket, local: Path, location: Location) -> None:
    """Upload a folder; see `calib_core.storage.uris.publish`.

    Raises:
        DataFormatError: the folder is empty.
        StaleVersionError: another one publishes to the same place, and began later.
    """
    paths = sorted(path for path in local.rglob("*") if path.is_file() and path.name != MANIFEST)
    if not paths:
        raise DataFormatError(f"{local}: the folder is empty, so there is nothing to publish")
    name = location.key.removesuffix("/")
    if name and not name.endswith("/") and bucket.stat(name):
        raise ConfigError(f"{location.uri}: is an object, not a folder; choose another name")
    say_size(location.uri, [path.stat().st_size for path in paths])
    files = {path.relative_to(local).as_posix(): path for path in paths}
    _Publication(bucket, location, files).run()


def listed(bucket: Bucket, prefix: str) -> dict[str, StoredObject]:
    """Objects below a prefix by their path below it, without the empty ones that stand for folders."""
    return {
        obj.name.removeprefix(prefix): obj
        for obj in bucket.listed(prefix)
        if not (obj.name.endswith("/") and not obj.size_bytes)
    }


def with_checksum(bucket: Bucket, obj: StoredObject, entry: dict[str, Any]) -> StoredObject:
    """An object with its CRC32C: from a manifest's entry for this version of it, or from the store."""
    if obj.crc32c:
        return obj
    if entry.get("version") == obj.version and entry.get("crc32c"):
        return replace(obj, crc32c=entry["crc32c"])
    return bucket.stat(obj.name) or obj


def say_size(uri: str, sizes_bytes: list[int]) -> None:
    """Name a transfer that will take its time."""
    if is_sliced(sum(sizes_bytes)):
        say(f"{uri}: {len(sizes_bytes)} objects, {sum(sizes_bytes) / 1e6:.0f} MB")


class _Publication:
    """One attempt to publish files, by their paths below a place."""

    def __init__(self, bucket: Bucket, location: Location, files: dict[str, Path]) -> None:
        self._bucket, self._files = bucket, files
        self._prefix, self._at = location.prefix, f"{location.prefix}{MANIFEST}"
        # Of two who begin in one second each has to know its own manifest, whose ETag is its content's.
        self._mark = {"writer": secrets.token_hex(8), "time": datetime.now(UTC).isoformat(timespec="seconds")}
        self._version = ""
        self._before: dict[str, dict[str, Any]] = {}
        self._contested = False
        self._there: dict[str, StoredObject] = {}
        self._sent: dict[str, StoredObject] = {}

    def run(self) -> None:
        """Begin, send what isn't there, remove what is no part of it any more, and end."""
        self._begin()
        try:
            large = {path for path, file in self._files.items() if is_sliced(file.stat().st_size)}
            objects = in_parallel(self._send, sorted(self._files.keys() - large))
            objects += [self._send(path) for path in sorted(large)]
            self._remove_old()
            self._write("whole", objects)
        except StaleVersionError:
            self._withdraw()
            raise

    def _begin(self) -> None:
        """Take the place over, and only then look at what is there: no one who was before can change that."""
        found = self._bucket.read(self._at)
        if found:
            self._before, self._version = _entries(found[0]), found[1].version
            self._contested = _state(found[0]) != "whole"
        may_be_there = sorted(self._before.keys() | self._files.keys())
        self._write("writing", [{"path": path} for path in may_be_there])
        self._there = listed(self._bucket, self._prefix)

    def _write(self, state: str, objects: list[dict[str, Any]]) -> None:
        manifest = {"format": 1, **self._mark, "state": state, "objects": objects}
        data = json.dumps(manifest, indent=2).encode()
        self._version = self._bucket.put(self._at, data, expected=self._version).version

    def _send(self, path: str) -> dict[str, Any]:
        """Have a file's content there, in a version that no one else is about to write over; its entry."""
        file, name = self._files[path], f"{self._prefix}{path}"
        stored, contested = self._there.get(path), self._contested
        said = {"size_bytes": file.stat().st_size, "crc32c": crc32c_file(file)}
        if stored is not None and stored.size_bytes == said["size_bytes"]:
            stored = with_checksum(self._bucket, stored, self._before.get(path, {}))
        while True:
            try:
                if stored is None or (stored.size_bytes, stored.crc32c) != tuple(said.values()):
                    stored = self._bucket.upload(name, file, expected=stored.version if stored else "")
                    self._sent[path] = stored
                elif contested:
                    stored = self._bucket.renew(stored, file)
                return {"path": path, **said, "version": stored.version}
            except StaleVersionError:  # by one who was overtaken, if not this one was
                if not self._is_in_force():
                    raise
                stored, contested = self._bucket.stat(name), True

    def _is_in_force(self) -> bool:
        found = self._bucket.stat(self._at)
        return found is not None and found.version == self._version

    def _remove_old(self) -> None:
        """Remove what only earlier manifests have named, as it is now: who was overtaken may add to it."""
        if old := self._before.keys() - self._files.keys():
            there = listed(self._bucket, self._prefix)
            if not self._is_in_force():
                raise StaleVersionError(f"{self._bucket.root}/{self._at}: changed since it was written")
            in_parallel(self._bucket.discard, [there[path] for path in sorted(old & there.keys())])

    def _withdraw(self) -> None:
        found = self._bucket.read(self._at)
        named = _entries(found[0]) if found else {}
        in_parallel(self._bucket.discard, [obj for path, obj in self._sent.items() if path not in named])


def _state(manifest: bytes) -> str:
    """What a manifest says of its folder; "" where this is none."""
    try:
        return str(json.loads(manifest)["state"])
    except (ValueError, KeyError, TypeError):
        return ""


def _entries(manifest: bytes) -> dict[str, dict[str, Any]]:
    """Entries, by path, of what an earlier publication may have left; none where this is no manifest."""
    try:
        return {entry["path"]: entry for entry in json.loads(manifest)["objects"]}
    except (ValueError, KeyError, TypeError):
        return {}

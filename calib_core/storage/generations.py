"""State that is replaced by generation: written in full beside the old, and switched to by one small file.

    place/current.json        names the generations that count, the newest first
    place/g-TIME-OWNER-.../   one generation each, with the size and CRC-32 of its files in seal.json

`current.json` is replaced in one step everywhere: by a rename of one file on local disks, NFS and mounted
buckets, by one request in a bucket. So a reader finds a whole generation at each moment, wherever a writer is
killed. The generation before stays: for readers who are at it, and for the day on which the newest turns out
to be damaged. What isn't named and no living process is writing goes with the next write.

Writers take turns. Of two at once the one that switches last is in force, or, in a bucket, is told that it
came too late; a lock is the business of who writes here.

Example:
    checkpoints = Generations("gs://bucket/run-1/checkpoint")
    with checkpoints.write() as folder:
        (folder / "state.json").write_text("{}")
    folder = checkpoints.read()  # None before the first
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from calib_core.errors import DataFormatError
from calib_core.runtime.progress import say
from calib_core.storage import disks, uris
from calib_core.storage.files import read_json, share, write_json
from calib_core.storage.leftovers import Owner, remove, scratch_folder

CURRENT, SEAL = "current.json", "seal.json"
ATTEMPTS = 3
_NAME = re.compile(r"g-(?P<time>[0-9a-f]{11})-(?P<owner>[0-9a-f]{8}-\d+-[0-9a-f]+)-[0-9a-f]{8}")


class Generations:
    """One state at a place: a folder on this machine, or in a bucket.

    Args:
        place: path or URI of the folder; nothing else may be in it.
        keep: how many generations stay, the newest among them.
    """

    def __init__(self, place: str | os.PathLike[str], *, keep: int = 2) -> None:
        self._place, self._keep = place, keep
        self._remote = uris.is_remote(place)

    @contextlib.contextmanager
    def write(self) -> Iterator[Path]:
        """Yield an empty folder that is the newest generation when the block ends without an error.

        Raises:
            StaleVersionError: in a bucket, another writer has switched meanwhile; this one is not in force.
            CalibError: the disk is full, or the bucket can't be written to.
        """
        name = f"g-{round(time.time() * 1000):011x}-{Owner.here()}-{secrets.token_hex(4)}"
        with self._new_folder(name) as folder:
            yield folder
            write_json(folder / SEAL, {path: _described(folder / path) for path in _paths(folder)})
            self._put(folder, name)
        names, version = self._named()
        kept = [name, *names][: self._keep]
        self._switch(kept, version)
        self._sweep(set(kept))

    def read(self) -> Path | None:
        """The newest generation that is whole, on this machine; None if nothing was written yet.

        A damaged one is named on standard error, and the one before it is taken.

        Raises:
            DataFormatError: none that counts is whole.
        """
        for attempt in range(ATTEMPTS):  # a generation may go while it is looked for: there is a newer one
            names = self._named()[0]
            if not names:
                return None
            for name in names:
                folder, damage = self._whole(name)
                if folder is not None:
                    return folder
                say(f"{self._place}: generation {name} is damaged ({damage}); looking at the one before")
            time.sleep(0.1 * attempt)
        raise DataFormatError(
            f"{self._place}: none of {len(names)} generations is whole; delete the folder to start over"
        )

    def drop(self) -> None:
        """Remove everything."""
        uris.delete(self._place)

    @contextlib.contextmanager
    def _new_folder(self, name: str) -> Iterator[Path]:
        if self._remote:
            with scratch_folder() as scratch:
                (scratch / name).mkdir()
                yield scratch / name
            return
        folder = Path(self._place) / name
        with disks.full_disk_told(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            try:
                yield folder
            except BaseException:
                remove(folder)
                raise

    def _put(self, folder: Path, name: str) -> None:
        if self._remote:
            uris.publish(folder, uris.join(self._place, name))
        else:
            share(folder, 0o777)
            disks.sync_tree(folder)
            disks.sync(folder.parent)

    def _named(self) -> tuple[list[str], str | None]:
        """Generations that count, newest first, and in a bucket the version of what names them.

        Where that is damaged, all that are there count.
        """
        at = uris.join(self._place, CURRENT)
        if self._remote:
            data, version = uris.read_versioned(at) or (b"", None)
        else:
            data, version = (Path(at).read_bytes() if Path(at).is_file() else b""), None
        if not data:
            return [], version
        try:
            names = [str(name) for name in json.loads(data)["generations"]]
        except (ValueError, KeyError, TypeError):
            names = []
        if names and all(map(_NAME.fullmatch, names)):
            return names, version
        say(f"{at}: is damaged; looking at all generations, the newest first")
        return sorted(self._there(), reverse=True), version

    def _there(self) -> set[str]:
        if self._remote:
            names = {file.path.partition("/")[0] for file in uris.list_files(self._place)}
        else:
            names = {path.name for path in Path(self._place).iterdir()}
        return {name for name in names if _NAME.fullmatch(name)}

    def _switch(self, names: list[str], version: str | None) -> None:
        at, content = uris.join(self._place, CURRENT), {"format": 1, "generations": names}
        if self._remote:
            uris.write_versioned(at, json.dumps(content, indent=2).encode(), expected=version)
        else:
            write_json(at, content)

    def _whole(self, name: str) -> tuple[Path | None, str]:
        """A generation's folder here if all its files are as they were written; else what is wrong."""
        place = uris.join(self._place, name)
        try:
            folder = uris.fetch(place) if self._remote else Path(place)
            sealed = read_json(folder / SEAL)
            for path, said in sealed.items():
                if _described(folder / path) != said:
                    return None, f"{path} has other bytes than were written"
        except (OSError, AttributeError, DataFormatError) as error:
            return None, str(error)
        return folder, ""

    def _sweep(self, kept: set[str]) -> None:
        """Remove generations that don't count, unless their writer may be at work."""
        for name in self._there() - kept:
            match = _NAME.fullmatch(name)
            owner = Owner.parse(match["owner"]) if match else None
            if match is None or owner is None:
                continue
            if owner == Owner.here() or owner.is_gone(time.time() - int(match["time"], 16) / 1000):
                uris.delete(uris.join(self._place, name))


def _paths(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _described(path: Path) -> dict[str, int]:
    """Size and CRC-32 of a file's bytes."""
    crc, size_bytes = 0, 0
    with path.open("rb") as stream:
        while data := stream.read(2**20):
            crc, size_bytes = zlib.crc32(data, crc), size_bytes + len(data)
    return {"size_bytes": size_bytes, "crc32": crc}

"""Putting a new folder in an old one's place so that there always is one, wherever the process ends.

Three ways, by what the file system can do:

* Local disks swap the two folders in one step (Linux's `renameat2`); readers see the old or the new one.
* Where two renames are needed (NFS), the old folder is called `.NAME....old` between them. A process that
  is killed there leaves no folder of the right name: `settle` gives the old one its name back.
* A mount point can't be renamed, nor can folders of mounted buckets. There the old files are copied aside,
  marked as whole, and the new ones put over the old, JSON files last, which readers begin with. A process
  that is killed there leaves old and new files mixed: `settle` puts the old ones back.

Of several who replace one folder at once the last one's is there in the end, whole. Where files are put over
others they take turns by a lock, which other machines don't see, nor all network file systems.

`calib_core.storage.uris.fetch`, and everything that writes a folder, settle what they find. For state that
must be readable at each moment, on every file system and in buckets, there is
`calib_core.storage.generations`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from calib_core.storage import disks
from calib_core.storage.leftovers import OLD, PART, is_foreign, left_of, remove, temporary_beside

NO_RENAME = (errno.EMFILE, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EBUSY)
"""What is answered where a folder can't be renamed: a mount point, or a folder of a mounted bucket, where
gcsfuse says EMFILE for more objects than its rename-dir-limit, which is 0 by default."""

RACED = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
"""What is answered where another has just put a folder there, or taken it away to replace it."""

ATTEMPTS = 100
"""How often to begin again where others replace the same folder."""

SAVED = ".calib-saved"
"""Lies in the copy of an old folder once it is whole."""

WAIT_S = 2.0
"""How long `settle` waits for another process that is between two renames."""


def home_of(target: Path) -> Path:
    """The folder for what is to become `target`: beside it, or in it where nothing can be made beside it."""
    return target if target.is_dir() and disks.is_closed(target) else target.parent


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of another, or where there is none; the old one is gone afterwards.

    Args:
        new: The folder, in `home_of(target)`; its bytes are on the disk when it gets its name.
        target: Its name; not a symbolic link.

    Raises:
        OSError: it can't be done; `target` is as it was.
    """
    disks.sync_tree(new)
    content = set(new.rglob("*"))
    for attempt in range(ATTEMPTS):
        try:
            _put(new, target)
            break
        except OSError as error:
            if error.errno not in RACED or attempt == ATTEMPTS - 1 or set(new.rglob("*")) != content:
                raise
        time.sleep(0.001 * attempt)
    disks.sync(target.parent)
    remove(new)  # which is the old one now, where they were swapped


def _put(new: Path, target: Path) -> None:
    if home_of(target) == target:
        _overwrite(new, target)
    elif not target.exists():
        _move(new, target)
    else:
        try:
            disks.swap(new, target)
        except OSError as error:
            if error.errno not in disks.NO_SWAP:
                raise
            _rename_twice(new, target)


def settle(target: Path) -> None:
    """Undo what a process left that was ended while it replaced a folder, and remove what is left of others.

    A process that is at it at this moment is waited for, if it leaves the folder without its name.
    """
    home = home_of(target)
    for old, gone in left_of(target, OLD, within=home):
        if not gone:
            _wait_for(target)
        elif (old / SAVED).exists():
            with _turn(target):
                if (old / SAVED).exists():
                    _restore(old, target)
        elif not target.exists():
            try:
                old.replace(target)
            except OSError:
                _wait_for(target)  # another process settles it too
        else:
            remove(old)
    for part, gone in left_of(target, PART, within=home):
        if gone:
            remove(part)


def _wait_for(target: Path) -> None:
    end_s = time.monotonic() + WAIT_S
    while not target.exists() and time.monotonic() < end_s:
        time.sleep(0.01)


def _rename_twice(new: Path, target: Path) -> None:
    old = temporary_beside(target, OLD)
    try:
        target.replace(old)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        _overwrite(new, target)
        return
    try:
        _move(new, target)
    except BaseException:
        with contextlib.suppress(OSError):  # another has put a folder there
            old.replace(target)
        remove(old)
        raise
    remove(old)


def _move(new: Path, target: Path) -> None:
    """Give a folder a name that is free."""
    try:
        new.replace(target)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        _overwrite(new, target)


def _overwrite(new: Path, target: Path) -> None:
    """Put a folder's files over another's, and remove what only that had; all or none of it."""
    with _turn(target):
        saved = None
        if _names(target):
            saved = temporary_beside(target, OLD, within=home_of(target))
            _copy(target, saved)
            disks.sync_tree(saved)
            (saved / SAVED).touch()
            disks.sync(saved)
        try:
            _fill(new, target, _move_file)
            disks.sync_tree(target)
        except BaseException:
            if saved is not None:
                _restore(saved, target)
            elif os.path.ismount(target):
                for name in _names(target):
                    remove(target / name)
            else:
                remove(target)
            raise
        if saved is not None:
            _forget(saved)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process puts files into a folder, which is made where it isn't there."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, folder):
                yield
                return
        finally:
            os.close(handle)


def _is_at(handle: int, folder: Path) -> bool:
    """Whether an open folder still bears its name: who had the lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


def _restore(saved: Path, target: Path) -> None:
    """Put the files of a whole copy back, and forget the copy."""
    _fill(saved, target, shutil.copyfile)
    _forget(saved)


def _forget(saved: Path) -> None:
    """Remove a copy: first the mark that it is whole, lest half of it be taken for all."""
    (saved / SAVED).unlink(missing_ok=True)
    remove(saved)


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for name in _names(source):
        for path in (source / name, *sorted((source / name).rglob("*"))):
            copy = target / path.relative_to(source)
            if path.is_dir():
                copy.mkdir()
            else:
                shutil.copyfile(path, copy)


def _fill(source: Path, target: Path, bring: Callable[[Path, Path], object]) -> None:
    """Make a folder's files those of another, each in one step, JSON files last."""
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.name != SAVED}
    files = [path for path in wanted if not (source / path).is_dir()]
    for path in sorted(wanted - set(files)):
        if not (target / path).is_dir():
            remove(target / path)
            (target / path).mkdir(parents=True)
    for path in sorted(files, key=lambda path: (path.suffix == ".json", path)):
        if (target / path).is_dir():
            remove(target / path)
        part = (target / path).with_name(f"{path.name}{PART}")
        bring(source / path, part)
        part.replace(target / path)
    there = {Path(name) for name in _names(target)}
    there |= {path.relative_to(target) for name in there.copy() for path in (target / name).rglob("*")}
    for path in sorted(there - wanted, reverse=True):
        remove(target / path)


def _move_file(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        shutil.copyfile(source, target)


def _names(folder: Path) -> list[str]:
    """What a folder holds, without temporary names and the file system's own."""
    return sorted(name for name in os.listdir(folder) if not is_foreign(name))

"""What a file system can do, and whether it can be written to: bytes that stay, swaps, room that is left."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from calib_core.errors import CalibError, ConfigError

LEAST_FREE_BYTES = 16 * 2**20
"""With less room than this no work is begun."""

NO_SWAP = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV)
"""What a file system answers that can't swap two folders (NFS, FUSE)."""

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names where these can be synced, on the disk before going on.

    Raises:
        OSError: the bytes can't be kept.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        if folder and error.errno in _NO_SYNC:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` everything in a folder, and the folder."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def swap(one: Path, other: Path) -> None:
    """Let two paths change places in one step, of which no one sees the middle.

    Raises:
        OSError: with a number in `NO_SWAP` where this can't be done.
    """
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)  # Linux alone has it
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one))
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


def check_writable(target: Path) -> None:
    """Refuse, before any work is done, a file or folder that can't be made.

    Raises:
        ConfigError: why not.
    """
    target = Path(os.path.realpath(target))
    there = next(path for path in (target, *target.parents) if os.access(path, os.F_OK))
    folder = there if there.is_dir() and (there != target or is_closed(there)) else there.parent
    if there != target and not there.is_dir():
        raise ConfigError(f"{target}: cannot be created, because {there} is a file; give another path")
    longest = os.pathconf(folder, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in target.parts):
        raise ConfigError(f"{target}: a name in it is longer than {longest} bytes; give a shorter path")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in _FULL:
            raise _full(target) from None
        raise ConfigError(
            f"{target}: can't be written ({folder}: {error.strerror}); give another path, or make this one "
            "writable"
        ) from None
    room = shutil.disk_usage(folder)
    if room.total > 0 and room.free < LEAST_FREE_BYTES:
        raise _full(target)


def is_closed(folder: Path) -> bool:
    """Whether nothing can be put beside a folder, so that what replaces it has to be made in it."""
    return os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK)


@contextlib.contextmanager
def full_disk_told(target: Path) -> Iterator[None]:
    """Turn the end of the room on a disk into a message that says what to free.

    Raises:
        CalibError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _full(Path(error.filename) if isinstance(error.filename, str) else target) from error


def _full(target: Path) -> CalibError:
    there = next(path for path in (target, *target.parents) if path.is_dir())
    room, cache = shutil.disk_usage(there), cache_dir()
    message = f"{target}: no space left ({room.free / 1e6:.0f} of {room.total / 1e6:.0f} MB are free there)"
    if cache.is_dir() and cache.stat().st_dev == there.stat().st_dev and (used := _bytes_in(cache)):
        return CalibError(
            f"{message}; the cache {cache} holds {used / 1e6:.0f} MB and can be emptied while nothing runs: "
            "free space there or elsewhere, and run this again"
        )
    return CalibError(f"{message}; free some space, or give a path on another disk, and run this again")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


def cache_dir() -> Path:
    """The folder for data that can be made again: `$CALIB_CACHE`, or `calib` in the user's cache folder."""
    if explicit := os.environ.get("CALIB_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calib"

"""What a file system can do: keep bytes, swap two folders, take a folder beside another."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

NO_SWAP = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV)
"""What a file system answers that can't swap two folders (NFS, FUSE)."""

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
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


def is_closed(folder: Path) -> bool:
    """Whether nothing can be put beside a folder, so that what replaces it has to be made in it."""
    return os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK)

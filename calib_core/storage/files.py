"""Files and folders that appear atomically and stay, hashes, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from calib_core.errors import CalibError, ConfigError, DataFormatError
from calib_core.storage import disks
from calib_core.storage.leftovers import PART, is_foreign, left_of, remove, temporary_beside
from calib_core.storage.replacing import home_of, replace_folder, settle

LEAST_FREE_BYTES = 16 * 2**20
"""With less room than this no work is begun."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MODES = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP)
"""What a mounted bucket answers, which keeps no modes."""


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    The bytes are on the disk before the file has its name. Through a symbolic link the file that it names is
    replaced.

    Raises:
        CalibError: the disk is full; the message says what to free.
    """
    target = Path(os.path.realpath(path))
    with full_disk_told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for part, gone in left_of(target, PART):
            if gone:
                remove(part)
        temporary = temporary_beside(target, PART)
        temporary.touch(0o600)
        try:
            yield temporary
            disks.sync(temporary)
            share(temporary, 0o666)
            temporary.replace(target)
            disks.sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the block ends without an error.

    A folder that was there before is replaced as a whole: nothing of it is left among the new files, and
    there is no moment without it, as `calib_core.storage.replacing` describes. The bytes are on the disk
    before the folder has its name. Through a symbolic link the folder that it names is replaced.

    Raises:
        ConfigError: `path` is a file.
        CalibError: the disk is full; the message says what to free.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{path}: is a file; give another folder to write")
    with full_disk_told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        settle(target)
        temporary = temporary_beside(target, PART, within=home_of(target))
        temporary.mkdir(0o700)
        try:
            yield temporary
            share(temporary, 0o777)
            replace_folder(temporary, target)
        finally:
            remove(temporary)


def share(path: Path, mode: int) -> None:
    """Give a path that was made for its owner alone the mode that the umask leaves of `mode`.

    Other users of a shared volume could not read it otherwise; a mounted bucket has modes of its own.
    """
    umask = os.umask(0)
    os.umask(umask)
    try:
        path.chmod(mode & ~umask)
    except OSError as error:
        if error.errno not in _NO_MODES:
            raise


def check_writable(target: Path) -> None:
    """Refuse, before any work is done, a file or folder that can't be made.

    Raises:
        ConfigError: why not.
    """
    target = Path(os.path.realpath(target))
    there = next(path for path in (target, *target.parents) if os.access(path, os.F_OK))
    folder = there if there.is_dir() and (there != target or disks.is_closed(there)) else there.parent
    if there != target and not there.is_dir():
        raise ConfigError(f"{target}: can't be made, for {there} is a file; give another path")
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


def check_output_folder(
    path: str | os.PathLike[str], record: str, *, inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse, before any work is done, to replace what was not written by the same step.

    Args:
        path: folder that is going to be written by `whole_folder`.
        record: name of the file that every such folder holds.
        inputs: paths that the step reads; other names (hub ids) don't matter.

    Raises:
        ConfigError: `path` is a file, can't be written, holds other files, or holds an input.
        CalibError: there is no room on the disk.
    """
    target = Path(path)
    check_writable(target)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{path}: is a file; give another folder to write")
    if (
        target.is_dir()
        and any(not is_foreign(path.name) for path in target.iterdir())
        and not (target / record).is_file()
    ):
        raise ConfigError(
            f"{path}: is not empty and has no {record}, so what it holds is not an earlier result; give "
            "another folder to write, or empty this one"
        )
    for name in inputs:
        if name and Path(name).resolve().is_relative_to(target.resolve()):
            raise ConfigError(
                f"{path}: would be replaced, and the input {name} is in it; give another folder to write"
            )


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON has no word for.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        DataFormatError: the file is missing or isn't JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataFormatError(f"{path}: no such file; check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path}: not valid JSON ({error}); write the file anew") from None


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
<<<<<<< HEAD


def cache_dir() -> Path:
    """The folder for data that can be made again: `$CALIB_CACHE`, or `calib` in the user's cache folder."""
    if explicit := os.environ.get("CALIB_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calib"


def _full(target: Path) -> CalibError:
    there = next(path for path in (target, *target.parents) if path.is_dir())
    room, cache = shutil.disk_usage(there), cache_dir()
    message = f"{target}: no room left ({room.free / 1e6:.0f} of {room.total / 1e6:.0f} MB are free there)"
    if cache.is_dir() and cache.stat().st_dev == there.stat().st_dev and (used := _bytes_in(cache)):
        return CalibError(
            f"{message}; the cache {cache} holds {used / 1e6:.0f} MB and can be emptied while nothing runs: "
            "free that or something else, and run this again"
        )
    return CalibError(f"{message}; free some, or give a path on another disk, and run this again")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total
=======
>>>>>>> main

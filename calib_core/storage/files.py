"""Files and folders that appear atomically and stay, hashes, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from calib_core.errors import ConfigError, DataFormatError
from calib_core.storage import disks
from calib_core.storage.json_text import JsonError, parse_json
from calib_core.storage.leftovers import PART, is_foreign, left_of, remove, temporary_beside
from calib_core.storage.limits import JSON_BYTES
from calib_core.storage.replacing import home_of, replace_folder, settle

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
    with disks.full_disk_told(target):
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
    with disks.full_disk_told(target):
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
    disks.check_writable(target)
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


def check_output_file(
    path: str | os.PathLike[str], *, inputs: Iterable[str | os.PathLike[str] | None] = ()
) -> None:
    """Refuse, before any work is done, what can't become a file, or would replace an input.

    Args:
        path: file that is going to be written.
        inputs: paths that the step reads; None for one that isn't given.

    Raises:
        ConfigError: `path` is a folder, can't be written, or is an input.
        CalibError: there is no room on the disk.
    """
    target = Path(path)
    disks.check_writable(target)
    if target.is_dir():
        raise ConfigError(f"{path}: is a folder; give the name of a file in it")
    if target.exists() and any(name and Path(name).resolve() == target.resolve() for name in inputs):
        raise ConfigError(f"{path}: is an input, and would be replaced; give another file to write")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot represent.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file of settings or results.

    Raises:
        DataFormatError: the file is missing, can't be read, isn't JSON, or is larger than the limit
        `json_bytes`.
    """
    try:
        JSON_BYTES.check(Path(path).stat().st_size, str(path))
        return parse_json(Path(path).read_bytes(), unicode_only=True)
    except FileNotFoundError:
        raise DataFormatError(f"{path}: no such file; check the path") from None
    except (NotADirectoryError, IsADirectoryError) as error:
        raise DataFormatError(f"{path}: not a file ({error.strerror}); check the path") from None
    except JsonError as error:
        raise DataFormatError(f"{path}: not valid JSON ({error}); write the file again") from None


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()

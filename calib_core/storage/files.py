"""Files that appear whole or not at all, hashes, and the cache folder."""

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

from calib_core.errors import ConfigError, DataFormatError

# What a mounted bucket answers where it can't rename a folder (gcsfuse, with more objects in it than its
# rename-dir-limit, which is 0 by default, says EMFILE), and where it keeps no modes.
_NO_RENAME = (errno.EMFILE, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV)
_NO_MODES = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        share(temporary, 0o666)  # mkstemp makes 0600
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    A folder that was there before is replaced as a whole: nothing of it is left among the new files. On a
    mounted bucket that renames no folders the files are copied into place, the JSON files last, which readers
    begin with; where that fails, none of them stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        share(temporary, 0o777)
        if target.exists():
            _move_folder(target, old)
        _move_folder(temporary, target)
    except BaseException:
        if old.exists() and not target.exists():
            _move_folder(old, target)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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


def _move_folder(source: Path, target: Path) -> None:
    """Rename a folder, or copy its files and remove it where folders can't be renamed."""
    try:
        source.replace(target)
        return
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
    shutil.rmtree(target, ignore_errors=True)  # what a rename may have begun
    try:
        target.mkdir(parents=True)
        for path in sorted(source.rglob("*"), key=lambda path: (path.suffix == ".json", path)):
            copy = target / path.relative_to(source)
            if path.is_dir():
                copy.mkdir(parents=True, exist_ok=True)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    shutil.rmtree(source, ignore_errors=True)


def check_output_folder(
    path: str | os.PathLike[str], record: str, *, inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse, before any work is done, to replace what was not written by the same step.

    Args:
        path: folder that is going to be written by `whole_folder`.
        record: name of the file that every such folder holds.
        inputs: paths that the step reads; other names (hub ids) don't matter.

    Raises:
        ConfigError: `path` is a file, holds other files, or holds an input.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{path}: is a file; give another folder to write")
    if target.is_dir() and any(target.iterdir()) and not (target / record).is_file():
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
    """Write `value` as indented JSON, whole or not at all.

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


def cache_dir() -> Path:
    """The folder for data that can be made again: `$CALIB_CACHE`, or `calib` in the user's cache folder."""
    if explicit := os.environ.get("CALIB_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calib"

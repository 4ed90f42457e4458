"""Temporary names that say who made them, so that what processes leave that are gone can be removed.

A name holds its maker's host, process id and start: `.model.3f2a81c0-412-9b31f.5e0c11aa.part`. On the same
host (in the same container) a maker is gone when no process has its id and start. What another host has made,
on a shared volume, counts as left when nothing in it has changed for a week.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STALE_S = 7 * 24 * 3600.0
PART, OLD = ".part", ".old"
"""Suffixes of what is being written, and of what is being replaced."""

_OWNER = r"(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>[0-9a-f]+)"
_NAME_BYTES = 150


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, told from all others.

    Attributes:
        host: Hash of the host's name and of the container's process numbers.
        pid: Process id in there.
        start: When it began, in the host's own ticks.
    """

    host: str
    pid: int
    start: str

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(host=_host(), pid=os.getpid(), start=_start_of(os.getpid()) or "0")

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner that a text is; None if it is none."""
        match = re.fullmatch(_OWNER, text)
        return cls(host=match["host"], pid=int(match["pid"]), start=match["start"]) if match else None

    def __str__(self) -> str:
        return f"{self.host}-{self.pid}-{self.start}"

    def is_gone(self, idle_s: float) -> bool:
        """Whether the process has ended.

        Args:
            idle_s: for how long nothing has changed that a process of another host would change.
        """
        if self.host != _host():
            return idle_s > STALE_S
        return _start_of(self.pid) != self.start


def temporary_beside(target: Path, suffix: str, *, within: Path | None = None) -> Path:
    """A name for something that is to become, or was, `target`; in the same folder, or `within` another."""
    return (within or target.parent) / f".{_stem(target)}.{Owner.here()}.{secrets.token_hex(4)}{suffix}"


def left_of(target: Path, suffix: str, *, within: Path | None = None) -> list[tuple[Path, bool]]:
    """What bears such a name for `target`, newest first, and whether its owner is gone."""
    pattern = re.compile(
        rf"\.{re.escape(_stem(target))}\.(?P<owner>[0-9a-f]{{8}}-\d+-[0-9a-f]+)\.[0-9a-f]{{8}}{re.escape(suffix)}"
    )
    found = []
    with contextlib.suppress(OSError), os.scandir(within or target.parent) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            owner = Owner.parse(match["owner"]) if match else None
            if owner is not None:
                path = Path(entry.path)
                idle_s = _idle_s(path)
                found.append((idle_s, path, owner.is_gone(idle_s)))
    return [(path, gone) for _, path, gone in sorted(found)]


def is_foreign(name: str) -> bool:
    """Whether a name in a folder is no part of its content: a temporary one, or the file system's own."""
    return name == "lost+found" or (name.startswith(".") and name.endswith((PART, OLD)))


def remove(path: Path) -> None:
    """Remove a file or a folder, or as much of it as can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder that is removed when the block ends; what is left of others goes."""
    root = Path(tempfile.gettempdir())
    name = re.compile(rf"calib-(?P<owner>{_OWNER})-.+")
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            match = name.fullmatch(entry.name)
            owner = Owner.parse(match["owner"]) if match else None
            if owner is not None and owner.is_gone(_idle_s(Path(entry.path))):
                remove(Path(entry.path))
    with tempfile.TemporaryDirectory(prefix=f"calib-{Owner.here()}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _stem(target: Path) -> str:
    """A target's name, or, if it is long, what stands for it: with the rest it must be a name still."""
    name = target.name
    return (
        name if len(os.fsencode(name)) <= _NAME_BYTES else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    )


def _host() -> str:
    """What tells this host, or container, from others; containers may share a host's name."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return hashlib.sha256(f"{socket.gethostname()}\n{numbers}".encode()).hexdigest()[:8]


def _start_of(pid: int) -> str | None:
    """When a process began, in hexadecimal ticks; None if there is none, "0" where that isn't told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass  # there, but another user's
        return "0"
    fields = stat.rpartition(")")[2].split()  # what follows the command's name, which may hold anything
    return None if fields[0] in "ZX" else f"{int(fields[19]):x}"


def _idle_s(path: Path) -> float:
    """Seconds since anything in a file or folder has changed."""
    newest_s = 0.0
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        with contextlib.suppress(OSError):
            newest_s = max(newest_s, each.lstat().st_mtime)
    return time.time() - newest_s

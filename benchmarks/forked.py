"""Work in a fork of this process that is killed at a chosen change of the disk, or at a chosen time."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = (
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate"),
)
"""Python's audit events that stand for a change of the disk, beside `open` for writing."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a fork ended.

    Attributes:
        status: As `os.waitpid` gives it.
        memory_kb: The most memory that it had.
    """

    status: int
    memory_kb: int

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return os.WIFSIGNALED(self.status)


def start(
    work: Callable[[], object],
    *,
    root: Path,
    log: Path,
    environment: Mapping[str, str],
    kill_at: int = 0,
    changes: Path | None = None,
) -> int:
    """Do some work in a fork; its process id.

    Args:
        work: What to do; an exception is written to the log, and the exit code is 1 then.
        root: Changes of the disk are counted below it, and its folder `tmp` is the temporary one.
        log: Gets what is printed.
        environment: Variables to set.
        kill_at: Number of the change, counted from 1, just before which the fork is killed; 0 for none.
        changes: Gets the number of changes where the work ends.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {**environment, "TMPDIR": str(root / "tmp")}
        tempfile.tempdir = str(root / "tmp")  # lest Python try it out by a file of its own
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = sys.stderr = os.fdopen(2, "w")
        seen = _counted(str(root), kill_at)
        work()
        if changes is not None:
            changes.write_text(str(seen()))
        code = 0
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, *, after_s: float) -> Ended:
    """Wait for a fork for so long; then kill it."""
    end_s = time.monotonic() + after_s
    while time.monotonic() < end_s:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return Ended(status=status, memory_kb=usage.ru_maxrss)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return Ended(status=status, memory_kb=usage.ru_maxrss)


def _counted(root: str, kill_at: int) -> Callable[[], int]:
    """Count this process's changes of the disk, and end it before one of them."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            _, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else mode != "r"
            if not writes:
                return
        elif event not in CHANGES:
            return
        if str(arguments[0]).startswith(root):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen

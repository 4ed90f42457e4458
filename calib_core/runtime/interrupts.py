"""SIGTERM and Ctrl-C during work that must end in good order: noted, and acted on where that is safe.

A signal may come in the middle of an optimiser step. Within `deferred` it is only noted; the work calls
`check` between its parts, which raises `Stopped`, in all processes of a run where one was told to end.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from calib_core.runtime import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATIENCE_S = 10.0
"""A second signal that comes later than this after the first one ends the work where it is."""


class Stopped(KeyboardInterrupt):
    """The process was told to end, by SIGTERM or Ctrl-C, and has come to a place where it can.

    Attributes:
        number: the signal's number.
        exit_code: what a command ends with, 128 and the signal's number, as shells count.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number


class _Requests:
    """What this process was told: nothing yet, or to end, and when."""

    def __init__(self) -> None:
        self.noting = False
        self.number = 0
        self.at_s = 0.0


_requests = _Requests()


@contextlib.contextmanager
def deferred(tell: Callable[[int], object] | None = None) -> Iterator[None]:
    """Note SIGTERM and SIGINT within the block, for `check`, instead of ending immediately.

    Outside the main thread, where Python takes no signals, nothing changes.

    Args:
        tell: called with the signal's number when one comes.
    """
    if threading.current_thread() is not threading.main_thread() or _requests.noting:
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if _requests.number and time.monotonic() - _requests.at_s > PATIENCE_S:
            raise KeyboardInterrupt  # not `Stopped`: this is no place to leave anything in order
        if not _requests.number:
            _requests.number, _requests.at_s = number, time.monotonic()
        if tell is not None:
            tell(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    _requests.noting, _requests.number = True, 0
    try:
        yield
    finally:
        _requests.noting, _requests.number = False, 0
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> int:
    """Number of the signal that this process has got within `deferred`; 0 before."""
    return _requests.number


def check(note: bool = False) -> bool:
    """Raise where this process, or another one of the run, was told to end; nothing outside `deferred`.

    All processes of a run must call this at the same place.

    Args:
        note: something that one process wants all to know.

    Returns:
        Whether any process has given a `note`.

    Raises:
        Stopped: one of them was told to end.
    """
    if not _requests.noting:
        return note
    number, any_note = processes.largest(_requests.number, int(note))
    if number:
        raise Stopped(number)
    return bool(any_note)

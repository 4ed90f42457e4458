"""Progress on standard error: a bar on a terminal, a line every few seconds elsewhere (pod logs, files)."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from types import TracebackType

from tqdm import tqdm

from calib_core.runtime.processes import speaks

LINE_INTERVAL_S = 5.0


class Progress:
    """Counts finished units of a long step, and says how far it is.

    Example:
        with Progress("scoring", total=len(questions), unit="questions") as progress:
            progress.advance(16, note="letter mass 0.93")
    """

    def __init__(self, description: str, *, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done, self._note = 0, ""
        self._said = 0
        self._started_s = self._said_s = time.monotonic()
        self._quiet = not speaks()
        self._bar = (
            tqdm(total=total, desc=description, unit=f" {unit}", file=sys.stderr, leave=False)
            if sys.stderr.isatty() and not self._quiet
            else None
        )

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Add `count` finished units; `note` is a short text to show beside the count."""
        self._done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._said_s >= LINE_INTERVAL_S:
            self._say()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._said_s > self._started_s and self._said < self._done:
            self._say()

    def _say(self) -> None:
        if self._quiet:
            return
        self._said, self._said_s = self._done, time.monotonic()
        elapsed_s = self._said_s - self._started_s
        note = f", {self._note}" if self._note else ""
        line = f"{self._description}: {self._done}/{self._total} {self._unit}, {elapsed_s:.0f} s{note}"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def say(text: str) -> None:
    """Write one line to standard error; of several processes the first one does."""
    if not speaks():
        return
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def quiet_libraries() -> None:
    """Silence what libraries tell their developers; for programs of this project, never for its importers.

    bitsandbytes, which PEFT imports where it is installed, advises on some CPUs to install a package that
    fetches machine code from a hub.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

"""Looking at something on a cluster until it has ended, through answers that fail for a while."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from calib_core.runtime.progress import say

T = TypeVar("T")


def looks(
    look: Callable[[], T],
    *,
    every_s: float,
    patience_s: float,
    passes: Callable[[Exception], bool],
    timeout_s: float = math.inf,
) -> Iterator[T]:
    """What `look` finds, again and again, until `timeout_s` has gone by.

    Args:
        look: asks.
        every_s: pause between two looks.
        patience_s: how long looks may fail, since the last one that didn't.
        passes: whether an error is one that may pass by itself.
        timeout_s: when to end.

    Raises:
        Exception: the error of a look that doesn't pass, or hasn't passed in `patience_s`.
    """
    begun_s = answered_s = time.monotonic()
    while time.monotonic() - begun_s < timeout_s:
        try:
            found = look()
        except Exception as error:
            if not passes(error) or time.monotonic() - answered_s > patience_s:
                raise
            say(f"{error}; looking again in {every_s:g} s")
        else:
            answered_s = time.monotonic()
            yield found
        time.sleep(every_s)

"""What the body of a component does around its one library call."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from calib_core.errors import CalibError, ConfigError, NotEnoughDataError
from calib_core.runtime.interrupts import SIGNALS, Stopped
from calib_core.runtime.messages import shown_message
from calib_core.runtime.progress import quiet_libraries
from calib_core.storage.files import write_json

ERROR_FILE_VARIABLE = "CALIB_ERROR_FILE"


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """End the process with one message and no traceback where the block raises a `CalibError` or is stopped.

    The message goes to standard error, which is the pod's log; or, where `$CALIB_ERROR_FILE` names a file,
    into that file. A local run of the pipeline, to which KFP says only that a task failed, reads it there.

    Raises:
        SystemExit: with the error's exit code.
    """
    quiet_libraries()
    try:
        yield
    except (CalibError, Stopped) as error:
        if path := os.environ.get(ERROR_FILE_VARIABLE):
            write_json(path, {"message": shown_message(error), "exit_code": error.exit_code})
        else:
            sys.stderr.write(f"error: {shown_message(error)}\n")
        raise SystemExit(error.exit_code) from None


def error_with(message: str, exit_code: int) -> CalibError | Stopped:
    """The error that another process reported, as one to raise in this one."""
    if exit_code in {128 + number for number in SIGNALS}:
        return Stopped(exit_code - 128, message)
    known = {kind.exit_code: kind for kind in (CalibError, ConfigError, NotEnoughDataError)}
    return known.get(exit_code, CalibError)(message)


def log_figures(metrics: Any, figures: Mapping[str, Any], *, prefix: str = "") -> None:
    """Log every figure that is a number, or an interval's value, to a KFP `Metrics` artifact."""
    for name, figure in figures.items():
        value = figure.get("value") if isinstance(figure, Mapping) else figure
        if isinstance(value, int | float) and not isinstance(value, bool):
            metrics.log_metric(prefix + name, float(value))

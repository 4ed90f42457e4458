"""Record how a run of a pipeline ended, where its user can read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypedDict

from calib_core.runtime.progress import say
from calib_core.runtime.secrets import shown, without_secrets
from calib_core.storage.files import write_json
from calib_core.storage.uris import join, publish
from calib_core.version import __version__

STATES = {"COMPLETE": "SUCCEEDED", "CACHED": "SUCCEEDED", "CANCELED": "CANCELLED"}
"""Words of Kubeflow's metadata store, in Vertex's words."""

ENDS = ("SUCCEEDED", "FAILED", "CANCELLED")
UNKNOWN = "UNKNOWN"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ended, as the platform says it.

    Attributes:
        pipeline: The pipeline's name.
        run: The run's name on the platform.
        state: Its word for how it ended. Kubeflow's `RUNNING` means that it doesn't know.
        error_code: The platform's code; None if there was no error.
        error_message: What failed; empty if nothing did, and on Kubeflow, which says nothing of it.
        parameters: The run's parameters by name.
    """

    pipeline: str
    run: str
    state: str
    error_code: int | None = None
    error_message: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


class RunRecord(TypedDict):
    """How a run of a pipeline on a cluster ended."""

    format: Annotated[int, "Version of this format: 1."]
    pipeline: Annotated[str, "The pipeline's name."]
    run: Annotated[str, "The run's name on the platform."]
    state: Annotated[str, "`SUCCEEDED`, `FAILED`, `CANCELLED`, or `UNKNOWN` if the platform doesn't know."]
    platform_state: Annotated[str, "The platform's own word."]
    error_code: Annotated[int | None, "The platform's code; null if there was no error."]
    error_message: Annotated[str, "What failed, without secrets; Kubeflow gives no message."]
    parameters: Annotated[dict[str, Any], "The run's parameters, without secrets."]
    ended: Annotated[str, "When, in ISO 8601, UTC."]
    library_version: Annotated[str, "Version of calib-core that wrote it."]


def record(end: RunEnd, out: Path, *, folder: str = "") -> RunRecord:
    """Write the record of a run's end, and a copy into a folder where all runs have one.

    Args:
        end: what the platform says.
        out: JSON file to write.
        folder: gets the copy, named by pipeline, run and time; none if it is empty.

    Returns:
        What was written. `state` is `SUCCEEDED`, `FAILED`, `CANCELLED`, or `UNKNOWN` where the platform
        doesn't know; `platform_state` is its own word. Secrets are left out: values that are named like one,
        in JSON texts too, user names, passwords and queries in URLs, and tokens of known forms, in the
        message too.
    """
    ended = datetime.now(UTC).replace(microsecond=0)
    state = STATES.get(end.state, end.state)
    written: RunRecord = {
        "format": FORMAT,
        "pipeline": end.pipeline,
        "run": end.run,
        "state": state if state in ENDS else UNKNOWN,
        "platform_state": end.state,
        "error_code": end.error_code,
        "error_message": without_secrets(end.error_message),
        "parameters": shown(end.parameters),
        "ended": ended.isoformat(),
        "library_version": __version__,
    }
    write_json(out, written)
    if folder:
        name = re.sub(r"[^\w.-]+", "-", f"{end.pipeline}-{end.run.rpartition('/')[2]}-{ended:%Y%m%dT%H%M%SZ}")
        publish(out, join(folder, f"{name}.json"))
    say(f"run {end.run or '(no name)'} of {end.pipeline}: {written['state']}")
    return written

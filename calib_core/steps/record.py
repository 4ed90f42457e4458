"""Record how a run of a pipeline ended, where its user can read it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calib_core.runtime.progress import say
from calib_core.storage.files import write_json
from calib_core.storage.uris import join, publish
from calib_core.version import __version__

STATES = {"COMPLETE": "SUCCEEDED", "CACHED": "SUCCEEDED", "CANCELED": "CANCELLED"}
"""Words of Kubeflow's metadata store, in Vertex's words."""

ENDS = ("SUCCEEDED", "FAILED", "CANCELLED")
UNKNOWN = "UNKNOWN"

HIDDEN = "***"
_SECRET_NAMES = re.compile(r"token|secret|password|passwd|api_?key|credential", re.IGNORECASE)
_SECRET_TEXTS = (
    (re.compile(r"(?<=://)[^/@\s]+(?=@)"), HIDDEN),  # user and password in a URL
    (re.compile(r"(://[^\s?#]+\?)[^\s#'\"]+"), rf"\1{HIDDEN}"),  # its query: signatures, tokens
    (re.compile(r"\b(?:hf_|ghp_|ya29\.|AIza)[\w.-]{12,}"), HIDDEN),
    (re.compile(r"(?<=Bearer )\S+"), HIDDEN),
)


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ended, as the platform says it.

    Attributes:
        pipeline: The pipeline's name.
        run: The run's name on the platform.
        state: Its word for how it ended. Kubeflow's `RUNNING` means that it doesn't know.
        error_code: The platform's code; None where there was no error.
        error_message: What failed; empty where nothing did, and on Kubeflow, which says nothing of it.
        parameters: The run's parameters by name.
    """

    pipeline: str
    run: str
    state: str
    error_code: int | None = None
    error_message: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def record(end: RunEnd, out: Path, *, folder: str = "") -> dict[str, Any]:
    """Write the record of a run's end, and a copy into a folder where all runs have one.

    Args:
        end: what the platform says.
        out: JSON file to write.
        folder: gets the copy, named by pipeline, run and time; none where it is empty.

    Returns:
        What was written. `state` is `SUCCEEDED`, `FAILED`, `CANCELLED`, or `UNKNOWN` where the platform
        doesn't know; `platform_state` is its own word. Secrets are left out: values that are named like one,
        in JSON texts too, user names, passwords and queries in URLs, and tokens of known forms, in the
        message too.
    """
    ended = datetime.now(UTC).replace(microsecond=0)
    state = STATES.get(end.state, end.state)
    written = {
        "pipeline": end.pipeline,
        "run": end.run,
        "state": state if state in ENDS else UNKNOWN,
        "platform_state": end.state,
        "error_code": end.error_code,
        "error_message": without_secrets(end.error_message),
        "parameters": _shown(end.parameters),
        "ended": ended.isoformat(),
        "library_version": __version__,
    }
    write_json(out, written)
    if folder:
        name = re.sub(r"[^\w.-]+", "-", f"{end.pipeline}-{end.run.rpartition('/')[2]}-{ended:%Y%m%dT%H%M%SZ}")
        publish(out, join(folder, f"{name}.json"))
    say(f"run {end.run or '(no name)'} of {end.pipeline}: {written['state']}")
    return written


def without_secrets(text: str) -> str:
    """`text` with what may be a secret replaced by `***`.

    >>> without_secrets("no answer from https://me:pw@models.example/a?sig=1f3")
    'no answer from https://***@models.example/a?***'
    """
    for pattern, instead in _SECRET_TEXTS:
        text = pattern.sub(instead, text)
    return text


def _shown(value: Any) -> Any:
    """A parameter's value, or part of one, without what may be a secret."""
    if isinstance(value, Mapping):
        return {name: _hidden(name, part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shown(part) for part in value]
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError):
        parsed = json.loads(value)
        if isinstance(parsed, dict | list):
            shown = _shown(parsed)
            return value if shown == parsed else json.dumps(shown, ensure_ascii=False)
    return without_secrets(value)


def _hidden(name: str, value: Any) -> Any:
    """A named value: `***` where the name is a secret's, and it is more than a number (`pass_tokens`)."""
    secret = value and not isinstance(value, int | float) and _SECRET_NAMES.search(name)
    return HIDDEN if secret else _shown(value)

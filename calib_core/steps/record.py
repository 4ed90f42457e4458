"""Record how a run of a pipeline ended, where its user can read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calib_core.runtime.progress import say
from calib_core.storage.files import read_json, write_json
from calib_core.version import __version__

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
        state: `SUCCEEDED`, `FAILED`, `CANCELLED`, or another word of the platform's.
        error_code: The platform's code; None where there was no error.
        error_message: What failed; empty where nothing did.
        parameters: The run's parameters, one `name=value` a line.
    """

    pipeline: str
    run: str
    state: str
    error_code: int | None = None
    error_message: str = ""
    parameters: str = ""


def record(end: RunEnd, out: Path, *, folder: str = "") -> dict[str, Any]:
    """Write the record of a run's end, and a copy into a folder where all runs have one.

    Args:
        end: what the platform says.
        out: JSON file to write.
        folder: gets the copy, named by pipeline, run and time; none where it is empty.

    Returns:
        What was written. Secrets are left out: values of parameters that are named like one, user names,
        passwords and queries in URLs, and tokens of known forms, in the message too.
    """
    ended = datetime.now(UTC).replace(microsecond=0)
    written = {
        "pipeline": end.pipeline,
        "run": end.run,
        "state": end.state,
        "error_code": end.error_code,
        "error_message": without_secrets(end.error_message),
        "parameters": _parameters(end.parameters),
        "ended": ended.isoformat(),
        "library_version": __version__,
    }
    write_json(out, written)
    if folder:
        name = re.sub(r"[^\w.-]+", "-", f"{end.pipeline}-{end.run.rpartition('/')[2]}-{ended:%Y%m%dT%H%M%SZ}")
        _copy(out, f"{folder.rstrip('/')}/{name}.json")
    say(f"run {end.run or '(no name)'} of {end.pipeline}: {end.state or '(no state)'}")
    return written


def _copy(source: Path, to: str) -> None:
    if to.startswith("gs://"):
        from calib_core.storage.uris import publish  # noqa: PLC0415 - an extra

        publish(source, to)
    else:
        write_json(to, read_json(source))


def without_secrets(text: str) -> str:
    """`text` with what may be a secret replaced by `***`.

    >>> without_secrets("no answer from https://me:pw@models.example/a?sig=1f3")
    'no answer from https://***@models.example/a?***'
    """
    for pattern, instead in _SECRET_TEXTS:
        text = pattern.sub(instead, text)
    return text


def _parameters(lines: str) -> dict[str, str]:
    """Parameters by name; a line that begins with no name belongs to the value before it."""
    found: dict[str, str] = {}
    name = ""
    for line in lines.splitlines():
        start = re.match(r"([A-Za-z_]\w*)=", line)
        if start:
            name = start[1]
            found[name] = line[start.end() :]
        elif name:
            found[name] += f"\n{line}"
    return {
        key: HIDDEN if value and _SECRET_NAMES.search(key) else without_secrets(value)
        for key, value in found.items()
    }

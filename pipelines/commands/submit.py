"""`calib pipeline submit`: start a compiled pipeline on Kubeflow or Vertex, once, and watch it to its end."""

from __future__ import annotations

import argparse
import itertools
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from calib_components.watching import looks
from calib_core.commands.library import Subparsers, command
from calib_core.errors import CalibError
from calib_core.runtime.progress import say
from calib_pipelines.clusters.base import (
    ENDS,
    PATIENCE_S,
    POLL_S,
    SUCCEEDED,
    Cluster,
    Run,
    TryAgainError,
    UnansweredError,
    UnreachableError,
)
from calib_pipelines.commands.flags import (
    add_cluster,
    add_package,
    checked_name,
    connect_for,
    submission_from,
)
from calib_pipelines.packages.reading import Submission


def add_submit(commands: Subparsers, arguments: Sequence[str]) -> None:
    """Add `submit`, given the arguments after `calib pipeline`."""
    parser = command(commands, "submit", "start a compiled pipeline on Kubeflow or Vertex")
    add_cluster(parser)
    parser.add_argument(
        "--name",
        type=checked_name,
        help="name of the run; the same name never starts a second one (default: the pipeline's, the time "
        "and four random digits)",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="report progress on standard error, and exit when it ends: with 0 if it succeeded, else 1",
    )
    add_package(parser, arguments, commands=("submit",))
    parser.set_defaults(run=_submit, text=_text, exit_code=_exit_code)


def submit(cluster: Cluster, submission: Submission, *, wait: bool) -> dict[str, Any]:
    """Start a run, or find the one that the same submission started under this name.

    Args:
        cluster: where it is to run.
        submission: what is to run.
        wait: whether to watch it to its end.

    Returns:
        `name`, `id`, `link`, `state`, `started` (whether now) and, where it was watched, `tasks` and `error`.

    Raises:
        CalibError: it could not be started, or not be watched to its end.
    """
    run, started = cluster.put_run(submission)
    say(f"{'started' if started else 'found'} {run.name}: {run.link}")
    result: dict[str, Any] = {"name": run.name, "id": run.id, "link": run.link, "started": started}
    if wait:
        run = _watch(cluster, run)
        result |= {"tasks": dict(run.tasks), "error": run.error}
    return {**result, "state": run.state}


def _watch(cluster: Cluster, run: Run) -> Run:
    """Say each change of state until the run ends; short losses of contact are waited out."""
    shown: dict[str, str] = {}
    found = itertools.chain(
        [run],
        looks(
            lambda: cluster.get_run(run.id),
            every_s=POLL_S,
            patience_s=PATIENCE_S,
            passes=lambda error: isinstance(error, TryAgainError | UnansweredError | UnreachableError),
        ),
    )
    try:
        for now in found:
            for name, state in {**now.tasks, "": now.state}.items():
                if shown.get(name) != state:
                    say(f"[{name or now.name}] {state}")
            shown = {**now.tasks, "": now.state}
            if now.state in ENDS:
                break
    except CalibError as error:
        raise _lost(error, run) from None
    return now


def _lost(error: CalibError, run: Run) -> CalibError:
    """The error, and how to go on watching a run that goes on by itself."""
    told = CalibError(
        f"{error}. The run goes on: {run.link}; the same command with --name {run.name} watches it again"
    )
    told.exit_code = error.exit_code
    return told


def _submit(given: argparse.Namespace) -> Mapping[str, Any]:
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    submission = submission_from(given, default_name=f"{{package}}-{now}-{secrets.token_hex(2)}")
    return {
        "target": given.target,
        **submit(connect_for(given, submission), submission, wait=given.wait),
        "parameters": dict(submission.parameters),
    }


def _text(result: Mapping[str, Any]) -> str:
    lines = [f"run: {result['name']}", f"state: {result['state']}", f"link: {result['link']}"]
    if result.get("error"):
        lines.append(f"error: {result['error']}")
    return "\n".join(lines)


def _exit_code(result: Mapping[str, Any]) -> int:
    """0, or 1 if the run was seen to end otherwise than well."""
    return int(result["state"] in ENDS and result["state"] != SUCCEEDED)

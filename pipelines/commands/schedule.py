"""`calib pipeline schedule`: schedules of compiled pipelines that can be sent again without being doubled."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calib_core.commands.library import Subparsers, command
from calib_core.errors import ConfigError
from calib_pipelines.clusters.base import Cluster, Schedule, only
from calib_pipelines.clusters.cron import EXAMPLE, parse_cron
from calib_pipelines.commands.flags import (
    add_cluster,
    add_package,
    checked_name,
    connect,
    connect_for,
    submission_from,
)


def add_schedule(commands: Subparsers, arguments: Sequence[str]) -> None:
    """Add `schedule` and its own subcommands, given the arguments after `calib pipeline`."""
    text = "create, list, pause, resume and delete schedules of pipelines"
    parser = commands.add_parser("schedule", help=text, description=text[0].upper() + text[1:] + ".")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = command(actions, "create", "create a schedule, or change the one with that name")
    add_cluster(create)
    create.add_argument("--name", required=True, type=checked_name, help="name of the schedule")
    create.add_argument(
        "--cron",
        required=True,
        help=f"when: minute, hour, day of month, month, day of week; {EXAMPLE}; on Vertex, TZ=Area/City may "
        "stand before them (UTC without)",
    )
    add_package(create, arguments, commands=("schedule", "create"))
    create.set_defaults(run=_create, text=_line)
    for name, text, run in (
        ("pause", "stop a schedule from starting runs until it is resumed", _pause),
        ("resume", "let a paused schedule start runs again", _resume),
        ("delete", "delete a schedule; its runs remain", _delete),
    ):
        action = command(actions, name, text)
        add_cluster(action)
        action.add_argument("--name", required=True, type=checked_name, help="name of the schedule")
        action.set_defaults(run=_acting(run), text=_line)
    listing = command(actions, "list", "list schedules of pipelines")
    add_cluster(listing)
    listing.set_defaults(run=_list, text=_lines)


def _create(given: argparse.Namespace) -> Mapping[str, Any]:
    cron = parse_cron(given.cron)
    if given.target == "kubeflow":
        cron.for_kubeflow  # noqa: B018 - refuses a time zone before anything is sent
    submission = submission_from(given)
    schedule, change = connect_for(given, submission).put_schedule(submission, cron)
    return {
        "target": given.target,
        **_described(schedule),
        "change": change,
        "parameters": dict(submission.parameters),
    }


def _acting(
    act: Callable[[Cluster, str], tuple[Schedule, str]],
) -> Callable[[argparse.Namespace], Mapping[str, Any]]:
    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        schedule, change = act(connect(given), given.name)
        return {"target": given.target, **_described(schedule), "change": change}

    return run


def _pause(cluster: Cluster, name: str) -> tuple[Schedule, str]:
    schedule = _named(cluster, name)
    cluster.pause(schedule)
    return _named(cluster, name), "unchanged" if schedule.state == "paused" else "paused"


def _resume(cluster: Cluster, name: str) -> tuple[Schedule, str]:
    schedule = _named(cluster, name)
    cluster.resume(schedule)
    return _named(cluster, name), "unchanged" if schedule.state == "active" else "resumed"


def _delete(cluster: Cluster, name: str) -> tuple[Schedule, str]:
    schedule = _named(cluster, name)
    cluster.delete(schedule)
    return schedule, "deleted"


def _list(given: argparse.Namespace) -> Mapping[str, Any]:
    found = connect(given).find_schedules()
    return {"target": given.target, "schedules": [_described(one) for one in found]}


def _named(cluster: Cluster, name: str) -> Schedule:
    found = only(
        cluster.find_schedules(name),
        what=f"schedules named {name!r} (where a change was cut short, the same `schedule create` "
        "finishes it)",
    )
    if found is None:
        raise ConfigError(f"no schedule named {name!r}; see them with: calib pipeline schedule list")
    return found


def _described(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "id": schedule.id,
        "state": schedule.state,
        "cron": schedule.cron,
        "link": schedule.link,
    }


def _line(result: Mapping[str, Any]) -> str:
    change = f"{result['change']}: " if "change" in result else ""
    return f"{change}{result['name']} ({result['cron']}), {result['state']}, {result['link']}"


def _lines(result: Mapping[str, Any]) -> str:
    return "\n".join(_line(one) for one in result["schedules"]) or "no schedules"

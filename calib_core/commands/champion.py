"""Commands around the champion: read what is new, publish a run, show the champion, roll back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from calib_core.champion.history import read_figures
from calib_core.champion.state import FILE, Champion, read_champion, rollback
from calib_core.commands.library import Subparsers, command
from calib_core.errors import ConfigError
from calib_core.report.text import figure
from calib_core.settings.flags import add_flags
from calib_core.settings.parameters import config_from, parameters_of
from calib_core.steps.fresh import FreshConfig, fresh
from calib_core.steps.publish import PublishConfig, publish_champion
from calib_core.storage.uris import fetch, join, published

FOLDER = "folder or bucket prefix of champion.json"
SHOWN_RUNS = 10


def add_champion_commands(commands: Subparsers) -> None:
    """Add `calib fresh`, `calib publish` and `calib champion`."""
    _add_fresh(commands)
    _add_publish(commands)
    text = "show which model is in use and how it came to be, or go back to an earlier one"
    parser = commands.add_parser("champion", help=text, description=text[0].upper() + text[1:] + ".")
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = command(subcommands, "show", "show the champion, its history and the figures of the last runs")
    show.add_argument("champion", help=FOLDER)
    show.set_defaults(run=lambda given: _show(given.champion), text=_shown)
    back = command(subcommands, "rollback", "make an earlier model champion again")
    back.add_argument("champion", help=FOLDER)
    back.add_argument(
        "--to",
        type=int,
        metavar="N",
        help="number of the change to go back to (default: the last other model)",
    )
    back.set_defaults(run=lambda given: rollback(given.champion, to=given.to).to_dict(), text=_history)


def _add_fresh(commands: Subparsers) -> None:
    parser = command(commands, "fresh", "read what is new in a stream of questions, and split it into folds")
    parser.add_argument("--stream", required=True, help="folder or bucket prefix with files of questions")
    parser.add_argument("--champion", required=True, help=FOLDER)
    parser.add_argument("--data", required=True, help="data folder to write")
    parser.add_argument("--snapshot", required=True, help="snapshot folder to write, for `publish`")
    add_flags(parser, parameters_of(FreshConfig))

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        config = config_from(FreshConfig, vars(given))
        with published(given.data) as data, published(given.snapshot) as snapshot:
            return fresh(config, stream=given.stream, champion=given.champion, data=data, snapshot=snapshot)

    parser.set_defaults(run=run)


def _add_publish(commands: Subparsers) -> None:
    parser = command(commands, "publish", "publish what a run decided in the champion's folder")
    parser.add_argument("--champion", required=True, help=FOLDER)
    parser.add_argument("--snapshot", required=True, help="snapshot folder that `fresh` wrote")
    parser.add_argument("--summary", required=True, help="folder that `promote` wrote")
    parser.add_argument("--model", required=True, help="path or URI of the run's output model")
    add_flags(parser, parameters_of(PublishConfig))

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        return publish_champion(
            config_from(PublishConfig, vars(given)),
            champion=given.champion,
            snapshot=fetch(given.snapshot),
            summary=fetch(given.summary),
            model=given.model,
        )

    parser.set_defaults(run=run)


def _show(folder: str) -> Mapping[str, Any]:
    found = read_champion(folder)
    if found is None:
        raise ConfigError(f"{join(folder, FILE)}: no champion there; check the folder")
    champion: Champion = found[0]
    runs = [{**row, "time": row["time"].isoformat()} for row in read_figures(folder)[-SHOWN_RUNS:]]
    return {**champion.to_dict(), "runs": runs}


def _shown(state: Mapping[str, Any]) -> str:
    lines = [_history(state), "", "last runs, figures as found on their new test questions:"]
    for row in state["runs"]:
        ece = {
            "value": row["before_conf_ece"],
            "low": row["before_conf_ece_low"],
            "high": row["before_conf_ece_high"],
        }
        outcome = "promoted" if row["promoted"] else "kept"
        lines.append(
            f"- {row['time']}: conf-ECE {figure(ece)}, accuracy {row['before_accuracy']:.3f}, "
            f"{row['n_test']} questions; {row['regime']}, branch {row['branch']}, {outcome}"
        )
    return "\n".join(lines)


def _history(state: Mapping[str, Any]) -> str:
    lines = [f"champion: {state['model']}", f"snapshot: {state['snapshot'] or '-'}", "", "history:"]
    for change in state["history"]:
        ece = change["figures"].get("conf_ece")
        measured = f", conf-ECE {figure(ece)}" if ece else ""
        lines.append(
            f"- {change['number']}. {change['time']} {change['action']}: {change['model']}{measured}"
        )
    return "\n".join(lines)

"""Publish: make what a run decided the champion's state, in a step that only one of several runs can win."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calib_core.champion.history import append_figures, figures_row
from calib_core.champion.state import Champion, now, read_champion, write_champion
from calib_core.errors import DataFormatError, StaleVersionError
from calib_core.report.html import HEADLINE_FIGURES
from calib_core.runtime.progress import say
from calib_core.settings.checks import Config
from calib_core.settings.parameters import parameter
from calib_core.steps.fresh import STATE_FILE
from calib_core.storage.files import read_json, sha256_file, sha256_json
from calib_core.storage.uris import fetch, is_remote, join
from calib_core.storage.uris import publish as upload


@dataclass(frozen=True, kw_only=True)
class PublishConfig(Config):
    """Parameters of publishing."""

    run_name: str = parameter("", "Name of the run, for the champion's history.")


def publish(
    config: PublishConfig, *, champion: str, snapshot: Path, summary: Path, model: str | Path
) -> dict[str, Any]:
    """Publish a run: its model where it was promoted, its snapshot, its report and its figures.

    Everything goes to a folder of the run's own first (`runs/<key>`). Then `champion.json` is replaced, on
    the condition that it still is as the run found it; last, the figures are appended. A run that was
    published and is published again changes nothing.

    Args:
        config: Parameters of publishing.
        champion: Folder or bucket prefix of `champion.json`.
        snapshot: Snapshot folder of `fresh`.
        summary: Folder with what `promote` wrote.
        model: Path or URI of the output model's folder; not read where it wasn't promoted.

    Returns:
        `model` (path or URI of the champion now), `number` of its last change, `promoted`, `run` (the key).

    Raises:
        StaleVersionError: another run was published meanwhile; of this one nothing is in force.
        DataFormatError: a folder isn't what it should be.
    """
    champion = champion if is_remote(champion) else str(Path(champion).absolute())
    state, result = read_json(snapshot / STATE_FILE), read_json(summary / "summary.json")
    if missing := {"expected", "champion", "snapshot"} - state.keys():
        raise DataFormatError(
            f"{snapshot / STATE_FILE}: {', '.join(sorted(missing))} missing; make the folder with `fresh`"
        )
    key = sha256_json([state["expected"], state["snapshot"], sha256_file(summary / "summary.json")])[:16]
    before = Champion.from_dict(state["champion"], str(snapshot / STATE_FILE))
    found = read_champion(champion)
    if found and found[0].run == key:
        after = found[0]
    else:
        if (found and found[1]) != state["expected"]:  # told before anything is uploaded
            raise _too_late(champion)
        promoted, place = bool(result["promoted"]), join(champion, f"runs/{key}")
        after = replace(before, snapshot=state["snapshot"], run=key)
        if promoted:
            figures = {name: result["after"][name] for name in HEADLINE_FIGURES}
            figures["accuracy_since_first"] = result["gate"].get("accuracy_since_first", 0.0)
            after = after.changed(
                "promoted", join(place, "model"), run=config.run_name or key, figures=figures
            )
        _upload_run(place, snapshot, summary, fetch(model) if promoted else None)
        try:
            write_champion(champion, after, expected=state["expected"])
        except StaleVersionError:
            raise _too_late(champion) from None
    row = figures_row(result, at=now(), run=key, snapshot=state["snapshot"])
    append_figures(champion, {**row, "champion": after.model})
    say(f"champion: {after.model} (change {after.number}); figures are in {champion}")
    return {
        "model": after.model,
        "number": after.number,
        "promoted": bool(result["promoted"]),
        "run": key,
    }


def _upload_run(uri: str, snapshot: Path, summary: Path, model: Path | None) -> None:
    """Put everything of a run into its own folder, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="calib-") as scratch:
        folder = Path(scratch) / "run"
        shutil.copytree(snapshot, folder / "snapshot")
        for name in ("summary.json", "report.html"):
            shutil.copyfile(summary / name, folder / name)
        if model is not None:
            shutil.copytree(model, folder / "model")
        upload(folder, uri)


def _too_late(champion: str) -> StaleVersionError:
    return StaleVersionError(
        f"{champion}: the champion has changed since this run began, so another run or a rollback came "
        "first; nothing of this run is in force. Run again: it begins from the champion of now"
    )

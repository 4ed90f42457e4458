"""Publish: make what a run decided the champion's state, in a step that only one of several runs can win."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from calib_core.champion.history import HEADLINE_FIGURES, append_figures, figures_row, read_figures
from calib_core.champion.runs import (
    append_figures_owed,
    folder_of,
    run_key,
    sweep_runs,
    upload_run,
    write_figures_owed,
)
from calib_core.champion.state import Champion, now, read_champion, write_champion
from calib_core.data.stream import Snapshot
from calib_core.errors import CalibError, DataFormatError, EvidenceError, StaleVersionError
from calib_core.runtime.progress import say
from calib_core.settings.checks import Config
from calib_core.settings.parameters import parameter
from calib_core.steps.evidence import check_summary, copy_promoted
from calib_core.steps.fresh import STATE_FILE
from calib_core.steps.summary_record import FILE as SUMMARY
from calib_core.steps.summary_record import SummaryRecord, read_summary
from calib_core.storage.files import read_json, sha256_file
from calib_core.storage.leftovers import scratch_folder
from calib_core.storage.records import check_record
from calib_core.storage.uris import is_remote, join


@dataclass(frozen=True, kw_only=True)
class PublishConfig(Config):
    """Parameters of publishing."""

    run_name: str = parameter("", "Name of the run, for the champion's history.")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run that is to be published, checked to be one.

    Attributes:
        key: its name among the runs, made from its content.
        expected: version of the champion's file that it began from.
        snapshot: id of its snapshot.
        before: the champion that it began from.
        result: its summary.
        figures: the output model's, for the champion's history.
        row: its row of figures; which model is champion then is still to be said.
    """

    key: str
    expected: str | None
    snapshot: str
    before: Champion
    result: SummaryRecord
    figures: dict[str, Any]
    row: dict[str, Any]


def publish_champion(
    config: PublishConfig, *, champion: str, snapshot: Path, summary: Path, model: str | Path
) -> dict[str, Any]:
    """Publish a run: its model where it was promoted, its snapshot, its report and its figures.

    Everything is checked first: the summary against the snapshot and the report, the model against the
    summary. Then all of it goes to a folder of the run's own (`runs/<key>`), and `champion.json` is replaced,
    on the condition that it still is as the run found it; last, the figures are appended, and what overtaken
    runs have left is removed. A run that was published, or is published by two processes at once, is in force
    once, and each of them says so.

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
        EvidenceError: snapshot, summary, report and model don't belong together; the message names the link
            that is broken.
        DataFormatError: a folder isn't what it should be.
    """
    champion = champion if is_remote(champion) else str(Path(champion).absolute())
    run = _read_run(snapshot, summary)
    after = _in_force(champion, run.key)
    if after is None:
        after = _publish_run(config, champion, run, snapshot, summary, model)
    append_figures(champion, {**run.row, "champion": after.model})
    _sweep(champion)
    say(f"champion: {after.model} (change {after.number}); figures are in {champion}")
    return {
        "model": after.model,
        "number": after.number,
        "promoted": run.result["promoted"],
        "run": run.key,
    }


def _read_run(snapshot: Path, summary: Path) -> _Run:
    """Read a run's folders, and hold them to each other.

    Raises:
        DataFormatError: one isn't what it should be.
        EvidenceError: they are of two runs.
    """
    where = summary / SUMMARY
    state, result = read_json(snapshot / STATE_FILE), read_summary(summary)
    shape = {"expected": (str, None), "champion": dict, "snapshot": str, "data": {...: str}}
    check_record(state, shape, str(snapshot / STATE_FILE), advice="make the folder with `fresh`")
    before = Champion.from_dict(state["champion"], str(snapshot / STATE_FILE))
    read = Snapshot.read(snapshot)
    if read.id != state["snapshot"]:
        raise DataFormatError(
            f"{snapshot}: {STATE_FILE} is of another snapshot; make the folder again with `fresh`"
        )
    key = run_key(state["expected"], state["snapshot"], sha256_file(where))
    check_summary(result, where, data=state["data"], report=summary / "report.html")
    row = figures_row(result, at=now(), run=key, snapshot=state["snapshot"])
    after: Mapping[str, Any] = result["after"]
    figures = {name: after[name] for name in HEADLINE_FIGURES}
    gate = result["gate"]
    figures["accuracy_since_first"] = gate.get("accuracy_since_first", 0.0) if gate else 0.0
    known = before.history[-1].digest
    judged = result["evidence"]["before"]["model"].get("adapter_files")
    if known and judged != known:
        raise EvidenceError(
            f"{where}: judged another model than the champion that its run began from, {before.model} (the "
            "digests of their files differ); evaluate the champion"
        )
    return _Run(
        key=key,
        expected=state["expected"],
        snapshot=state["snapshot"],
        before=before,
        result=result,
        figures=figures,
        row=row,
    )


def _in_force(champion: str, key: str) -> Champion | None:
    """The champion as it is now, where this run has been published already."""
    found = read_champion(champion)
    if found is None or found[0].run == key:
        return found and found[0]
    return found[0] if any(row["run"] == key for row in read_figures(champion)) else None


def _publish_run(
    config: PublishConfig, champion: str, run: _Run, snapshot: Path, summary: Path, model: str | Path
) -> Champion:
    """Publish a run that isn't in force yet."""
    found = read_champion(champion)
    if (found and found[1]) != run.expected:  # told before anything is uploaded
        return _in_force(champion, run.key) or _too_late(champion)
    after = replace(run.before, snapshot=run.snapshot, run=run.key)
    with scratch_folder() as scratch:
        folder = scratch / "run"
        shutil.copytree(snapshot, folder / "snapshot")
        for name in (SUMMARY, "report.html"):
            shutil.copyfile(summary / name, folder / name)
        if run.result["promoted"]:
            after = after.changed(
                "promoted",
                join(folder_of(champion, run.key), "model"),
                run=config.run_name or run.key,
                figures=run.figures,
                digest=copy_promoted(run.result, summary / SUMMARY, model, folder / "model"),
            )
        write_figures_owed(folder, {**run.row, "champion": after.model})
        if found:
            append_figures_owed(champion, found[0].run)
        upload_run(champion, run.key, folder)
    try:
        write_champion(champion, after, expected=run.expected)
    except StaleVersionError:  # another run came first; or this one, published by another process
        return _in_force(champion, run.key) or _too_late(champion)
    return after


def _sweep(champion: str) -> None:
    """Remove what overtaken runs have left; the run is published all the same where that fails."""
    try:
        if found := read_champion(champion):
            sweep_runs(champion, *found)
    except (CalibError, OSError) as error:
        say(f"{champion}: what overtaken runs have left could not be removed now: {error}")


def _too_late(champion: str) -> NoReturn:
    raise StaleVersionError(
        f"{champion}: the champion has changed since this run began, so another run or a rollback came "
        "first; nothing of this run was published. Run it again, from the champion as it is now"
    )

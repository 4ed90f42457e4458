"""The folders `runs/<key>` beside the champion's file: what each run published, whole, and never in part.

A key begins with what its run's state of the champion hashes to. So it can be told from a folder's name that
its run can never win any more: the champion is at another version, and no version comes back.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from calib_core.champion.history import append_figures, read_figures
from calib_core.champion.state import Champion
from calib_core.errors import StaleVersionError
from calib_core.runtime.progress import say
from calib_core.storage.files import read_json, sha256_json, write_json
from calib_core.storage.uris import delete, exists, fetch, is_remote, join, list_folders
from calib_core.storage.uris import publish as upload

FIGURES = "figures.json"
PATIENCE_S = 30.0
"""How long to wait for another process that uploads the same run, before taking over from it."""
_KEY = re.compile(r"[0-9a-f]{16}")
_BEGAN_DIGITS = 6


def run_key(expected: str | None, *content: str) -> str:
    """The key of a run: the same for the same run, however often it is published.

    Args:
        expected: Version of the champion's file that the run began from; None if there was none.
        content: What else makes the run what it is.
    """
    rest = sha256_json([expected, *content])[: 16 - _BEGAN_DIGITS]
    return _began_from(expected) + rest


def folder_of(champion: str, key: str) -> str:
    """Path or URI of a run's folder."""
    return join(champion, f"runs/{key}")


def write_figures_owed(folder: Path, row: dict[str, Any]) -> None:
    """Put a run's row of figures beside what it publishes, for whoever has to append it."""
    write_json(folder / FIGURES, {**row, "time": row["time"].isoformat()})


def append_figures_owed(champion: str, key: str) -> None:
    """Append the row of a run that is in force and ended before it had appended it."""
    if not key or any(row["run"] == key for row in read_figures(champion)):
        return
    owed = f"{folder_of(champion, key)}/{FIGURES}"
    if exists(owed):
        row = read_json(fetch(owed))
        append_figures(champion, {**row, "time": datetime.fromisoformat(row["time"])})


def upload_run(champion: str, key: str, folder: Path) -> None:
    """Put a run's folder into its place, whole; one that is there already is the same, and is left alone.

    Raises:
        StaleVersionError: others upload the same run again and again, and none of them gets done.
        ConfigError: the storage can't be reached.
    """
    place = folder_of(champion, key)
    with _local_turn(champion):
        for attempt in range(4):
            if exists(place):
                return
            try:
                upload(folder, place)
                return
            except StaleVersionError:  # another process publishes the same run
                if attempt == 3:
                    raise
            ends_s = time.monotonic() + PATIENCE_S * random.uniform(0.5, 1.5)  # noqa: S311 (no secret)
            while time.monotonic() < ends_s and not exists(place):
                time.sleep(0.5)


def sweep_runs(champion: str, state: Champion, version: str) -> None:
    """Remove what runs left that were overtaken: folders that nothing names and nothing will name.

    Args:
        champion: Folder or bucket prefix.
        state: The champion as it is now.
        version: Version of its file.
    """
    named = {state.run, *(row["run"] for row in read_figures(champion))}
    named |= {part for change in state.history for part in re.split(r"[/\\]", change.model)}
    with _local_turn(champion):
        for key in list_folders(join(champion, "runs")):
            if _KEY.fullmatch(key) and key not in named and not key.startswith(_began_from(version)):
                delete(folder_of(champion, key))
                say(f"removed {folder_of(champion, key)}: its run was overtaken and never took effect")
        if not is_remote(champion):  # no one else uploads now, so what is there in part has no owner
            for left in Path(champion, "runs").glob(".*"):
                if left.suffix in (".part", ".old"):
                    shutil.rmtree(left, ignore_errors=True)


def _began_from(version: str | None) -> str:
    return sha256_json(version)[:_BEGAN_DIGITS]


@contextlib.contextmanager
def _local_turn(champion: str) -> Iterator[None]:
    """On a disk, one process at a time changes the runs' folders; in a bucket, preconditions see to it."""
    if is_remote(champion):
        yield
        return
    Path(champion).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(champion) / ".runs.lock"):
        yield

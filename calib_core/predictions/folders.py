"""Folders of predictions as other programs leave them: which files hold a run, and whether all are there."""

from __future__ import annotations

import re
from pathlib import Path

from calib_core.errors import DataFormatError, listed

LM_EVAL_FILES = re.compile(r"samples_(?P<part>.+?)(_\d{4}-\d\d-\d\dT[\d\-.:]+)?\.jsonl(\.gz)?")
VERTEX_FILES = re.compile(
    r"predictions?([._]results|[._]\d+)?(\.jsonl)?(-(?P<number>\d+)-of-(?P<count>\d+))?(\.jsonl)?(\.gz)?"
)
"""prediction.results-00000-of-00002, predictions_0001.jsonl; Gemini's predictions.jsonl, or its parts."""

VERTEX_ERRORS = re.compile(r"(prediction\.)?errors(_stats)?[-_]\d+.*")
UNFINISHED = "incremental_"
"""How the names begin of what Gemini's batch jobs write on the way; the last file holds all of it."""


def result_files(folder: Path) -> dict[str, Path]:
    """The files of predictions in a folder that another program wrote.

    A folder that holds just one folder of results, as a job's output prefix does, stands for that one.

    Args:
        folder: lm-eval's output folder, or that of a batch prediction of Vertex AI.

    Returns:
        Name of the part that a file holds (an lm-eval task; else the file's name) with the file.

    Raises:
        DataFormatError: there are none, parts are missing, some are of one task, several runs lie there, or
            instances failed.
    """
    parts = _parts(folder)
    if parts is None:
        inner = [
            path
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(UNFINISHED)
        ]
        runs = {path.name: found for path in inner if (found := _parts(path)) is not None}
        if len(runs) > 1:
            raise DataFormatError(
                f"{folder}: holds the results of several runs ({listed(runs, 6)}); give the folder of one"
            )
        if not runs:
            names = [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())]
            raise DataFormatError(
                f"{folder}: expected lm-eval's samples_*.jsonl, or Vertex's prediction.results-* or "
                f"predictions.jsonl, found {listed(names, 6) or 'no files'}; give the folder that holds them"
            )
        (parts,) = runs.values()
    return parts


def _parts(folder: Path) -> dict[str, Path] | None:
    """The files of results right in a folder; None if it has none."""
    paths = sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(UNFINISHED)
    )
    failed = [path.name for path in paths if VERTEX_ERRORS.fullmatch(path.name) and path.stat().st_size]
    if failed:
        raise DataFormatError(
            f"{folder / failed[0]}: instances failed, so their predictions are missing; predict them again, "
            "or remove this file to go on without them"
        )
    samples = [(match["part"], path) for path in paths if (match := LM_EVAL_FILES.fullmatch(path.name))]
    results = [(match, path) for path in paths if (match := VERTEX_FILES.fullmatch(path.name))]
    if samples and results:
        raise DataFormatError(
            f"{folder}: holds files of lm-eval and of Vertex AI ({samples[0][1].name}, "
            f"{results[0][1].name}); give a folder with one run"
        )
    if len({part for part, _ in samples}) < len(samples):
        raise DataFormatError(
            f"{folder}: several sample files of one task, so of several runs; give the file, or a folder "
            "with one run"
        )
    _check_complete(folder, [match for match, _ in results])
    return dict(samples) or {path.name: path for _, path in results} or None


def _check_complete(folder: Path, names: list[re.Match[str]]) -> None:
    """Refuse results whose parts, numbered as "00000-of-00002", are not all there."""
    counts = {int(name["count"]) for name in names if name["count"]}
    if not counts:
        return
    numbers = {int(name["number"]) for name in names if name["count"]}
    missing = [str(number) for number in range(min(max(counts), 100_000)) if number not in numbers]
    if len(counts) > 1 or missing:
        raise DataFormatError(
            f"{folder}: parts of {' and of '.join(map(str, sorted(counts)))}, of which "
            f"{listed(missing, 6) or 'none'} (from 0) are missing; give a folder with all parts of one job"
        )

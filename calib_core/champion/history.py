"""Figures over time: a table in the champion's folder, one row per run, appended atomically."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.errors import DataFormatError, StaleVersionError
from calib_core.storage.tables import as_declared
from calib_core.storage.uris import join, read_versioned, write_versioned

FILE = "figures.parquet"
ATTEMPTS = 20
HEADLINE_FIGURES = ("accuracy", "mean_confidence", "conf_ece", "cw_ece")
"""What is said of a model first, in the table, in reports and in registries."""

SCHEMA = pa.schema(
    [
        pa.field("time", pa.timestamp("s", tz="UTC"), nullable=False),
        pa.field("run", pa.string(), nullable=False),
        pa.field("snapshot", pa.string(), nullable=False),
        pa.field("champion", pa.string(), nullable=False),
        pa.field("regime", pa.string(), nullable=False),
        pa.field("branch", pa.string(), nullable=False),
        pa.field("promoted", pa.bool_(), nullable=False),
        pa.field("n_test", pa.int64(), nullable=False),
        pa.field("target_ece", pa.float64(), nullable=False),
        *(
            pa.field(f"{side}_{figure}{end}", pa.float64())
            for side in ("before", "after")
            for figure in HEADLINE_FIGURES
            for end in ("", "_low", "_high")
        ),
    ]
)
"""`before` is the champion that the run began with, `after` the challenger (null where none was trained)."""


def figures_row(summary: Mapping[str, Any], *, at: str, run: str, snapshot: str) -> dict[str, Any]:
    """A run's row, from its summary.

    Args:
        summary: What `promote` returned.
        at: Time of the run, ISO 8601.
        run: The run's key.
        snapshot: Id of the snapshot that it measured.
    """
    row: dict[str, Any] = {
        "time": datetime.fromisoformat(at),
        "run": run,
        "snapshot": snapshot,
        "champion": summary["model"],
        "regime": summary["regime"],
        "branch": summary["branch"],
        "promoted": summary["promoted"],
        "n_test": summary["before"]["n"],
        "target_ece": summary["bounds"]["target_ece"],
    }
    for side in ("before", "after"):
        measured = summary[side] if side == "before" or summary["branch"] != "none" else {}
        for figure in HEADLINE_FIGURES:
            interval = measured.get(figure) or {"value": None, "low": None, "high": None}
            row[f"{side}_{figure}"] = interval["value"]
            row[f"{side}_{figure}_low"] = interval["low"]
            row[f"{side}_{figure}_high"] = interval["high"]
    return row


def read_figures(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a champion's folder, oldest first; none if it has no table yet.

    Raises:
        DataFormatError: the table can't be read.
    """
    found = read_versioned(join(folder, FILE))
    return [] if found is None else _rows(found[0], folder)


def append_figures(folder: str | Path, row: Mapping[str, Any]) -> None:
    """Append a run's row; a row of the same run that is there already is left alone.

    Raises:
        DataFormatError: the table can't be read.
        StaleVersionError: other runs wrote at each of many attempts.
    """
    uri = join(folder, FILE)
    for attempt in range(ATTEMPTS):
        found = read_versioned(uri)
        rows = [] if found is None else _rows(found[0], folder)
        if any(known["run"] == row["run"] for known in rows):
            return
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([*rows, dict(row)], schema=SCHEMA), sink, compression="zstd")
        try:
            write_versioned(uri, sink.getvalue().to_pybytes(), expected=found and found[1])
            return
        except StaleVersionError:
            time.sleep(min(2.0, 0.05 * 2**attempt) * random.random())  # noqa: S311 (no secret)
    raise StaleVersionError(f"{uri}: changed at each of {ATTEMPTS} attempts to append to it; run again")


def _rows(data: bytes, folder: str | Path) -> list[dict[str, Any]]:
    try:
        table = as_declared(pq.ParquetFile(pa.BufferReader(data)).read(), SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataFormatError(
            f"{join(folder, FILE)}: not a table of figures ({error}); move it away, and a new one is started"
        ) from None
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows

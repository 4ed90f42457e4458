"""Write docs/formats/, the JSON schemas of what steps write, from the records' types. `make docs` runs it.

Usage: .venv/bin/python scripts/formats.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calib_core.champion.state import ChampionRecord
from calib_core.data.record import DataRecord
from calib_core.steps.record import RunRecord
from calib_core.storage.records import schema_of

FOLDER = Path(__file__).parents[1] / "docs" / "formats"
FORMATS: dict[str, tuple[Any, str]] = {
    "data": (DataRecord, "`data.json` of a data folder, written by `calib prepare`"),
    "champion": (ChampionRecord, "`champion.json`, written by `calib champion publish` and `rollback`"),
    "run": (
        RunRecord,
        "the record of a run's end, written by a pipeline's task `record-end`",
    ),
}
HEAD = """<!-- Written by `make docs` from the records' types; change those. -->
# Formats

JSON schemas of the records that steps write. Fields that a schema doesn't have may be there too: readers keep
them. A change that an older reader would misunderstand raises `format`.

| schema | record |
|---|---|
"""


def files() -> dict[str, str]:
    """The text of each file of docs/formats, by name."""
    made = {
        f"{name}.schema.json": _text(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema_of(kind)}
        )
        for name, (kind, _) in FORMATS.items()
    }
    rows = [f"| [{name}]({name}.schema.json) | {what} |\n" for name, (_, what) in FORMATS.items()]
    return {**made, "README.md": HEAD + "".join(rows)}


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")

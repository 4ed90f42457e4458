"""Write docs/formats/, the JSON schemas of what steps write, from the records' types. `make docs` runs it.

Usage: .venv/bin/python scripts/formats.py
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import docstring_parser

from calib_core.champion.state import ChampionRecord
from calib_core.data.record import DataRecord
from calib_core.decisions.result import RegimeRecord, RegimeResult, TemperatureFindings, TemperatureRecord
from calib_core.decisions.verdict import GateRecord, GateResult
from calib_core.metrics.interval import Interval, IntervalRecord
from calib_core.metrics.summary import Figures, FiguresRecord
from calib_core.steps.calibration_record import CalibrationRecord, HistoryRecord
from calib_core.steps.evaluation_record import EvaluationRecord
from calib_core.steps.record import RunRecord
from calib_core.steps.summary_record import BaselineRecord, SummaryRecord
from calib_core.storage.records import schema_of
from calib_core.training.stopping import Evaluation

FOLDER = Path(__file__).parents[1] / "docs" / "formats"
FORMATS: dict[str, tuple[Any, str]] = {
    "data": (DataRecord, "`data.json` of a data folder, written by `calib prepare`"),
    "evaluation": (
        EvaluationRecord,
        "`evaluation.json`, written by `calib evaluate` and `temperature`",
    ),
    "calibration": (
        CalibrationRecord,
        "`calibration.json` of a model folder, written by `calib align`, `cft`, `rcft` and `temperature`",
    ),
    "summary": (SummaryRecord, "`summary.json` of a run, written by `calib promote`"),
    "champion": (ChampionRecord, "`champion.json`, written by `calib champion publish` and `rollback`"),
    "run": (
        RunRecord,
        "the record of a run's end, written by a pipeline's task `record-end`",
    ),
}
MADE_FROM: dict[type, type] = {
    IntervalRecord: Interval,
    FiguresRecord: Figures,
    BaselineRecord: Figures,
    RegimeRecord: RegimeResult,
    TemperatureRecord: TemperatureFindings,
    GateRecord: GateResult,
    HistoryRecord: Evaluation,
}
"""Records that are a dataclass in a file: its docstring says what the fields are."""
_ATTRIBUTES = {record.__name__: inspect.getdoc(made) or "" for record, made in MADE_FROM.items()}

HEAD = """<!-- Written by `make docs` from the records' types; change those. -->
# Formats

JSON schemas of the records that steps write. Fields that a schema doesn't have may be there too: readers keep
them. A change that an older reader would misunderstand raises `format`.

| schema | record |
|---|---|
"""


def files() -> dict[str, str]:
    """The text of each file of docs/formats, by name."""
    made = {f"{name}.schema.json": _text(_schema(kind)) for name, (kind, _) in FORMATS.items()}
    rows = [f"| [{name}]({name}.schema.json) | {what} |\n" for name, (_, what) in FORMATS.items()]
    return {**made, "README.md": HEAD + "".join(rows)}


def _schema(kind: Any) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    made = _described(schema_of(kind), definitions)
    ends = {"$defs": definitions} if definitions else {}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, **ends}


def _described(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A schema with what the docstrings of dataclasses say of the fields of their records.

    Args:
        schema: what `schema_of` gives.
        definitions: gets the schemas of the records in it by name, which are referred to.
    """
    made = {**schema}
    if isinstance(made.get("properties"), dict):
        made["properties"] = {k: _referred(v, definitions) for k, v in made["properties"].items()}
        for field in docstring_parser.parse(_ATTRIBUTES.get(made["title"], "")).params:
            if field.arg_name in made["properties"]:
                text = " ".join((field.description or "").split())
                made["properties"][field.arg_name]["description"] = text[:1].upper() + text[1:]
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = _referred(made[key], definitions)
    if "anyOf" in made:
        made["anyOf"] = [_referred(each, definitions) for each in made["anyOf"]]
    return made


def _referred(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    made = _described(schema, definitions)
    if "title" not in made:
        return made
    definitions[made["title"]] = {key: value for key, value in made.items() if key != "description"}
    return {"$ref": f"#/$defs/{made['title']}", "description": made["description"]}


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")

"""The records that steps write: their schemas, and that readers and schemas agree on what is one."""

from __future__ import annotations

import json
import runpy
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, get_type_hints

import jsonschema
import pytest
from schemas import ROOT, schema, written

from calib_core.champion.state import first_champion, write_champion
from calib_core.data.questions import Question, write_questions
from calib_core.data.record import read_data_record
from calib_core.errors import DataFormatError
from calib_core.steps.calibration_record import read_calibration_record
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.steps.record import RunEnd, record
from calib_core.storage.records import check_record, schema_of

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "formats.py"))


def data_folder(folder: Path) -> Path:
    questions = [
        Question(id=str(n), question=f"What is {n} times {n * n + 7}?", choices=("one", "two"), answer=n % 2)
        for n in range(40)
    ]
    write_questions(questions, folder / "questions.parquet")
    prepare(PrepareConfig(questions=str(folder / "questions.parquet")), folder / "data")
    return folder / "data"


def test_the_schemas_are_fresh() -> None:
    made = SCRIPT["files"]()
    there = {path.name: path.read_text() for path in (ROOT / "docs" / "formats").iterdir()}
    assert there == made, "stale: run `make docs`"


@pytest.mark.parametrize(("record", "made"), SCRIPT["MADE_FROM"].items(), ids=lambda kind: kind.__name__)
def test_a_record_has_the_fields_of_what_it_is_made_from(record: type, made: type) -> None:
    own = {"BaselineRecord": {"temperature"}, "HistoryRecord": {"chosen"}}.get(record.__name__, set())
    assert set(get_type_hints(record)) - own == {field.name for field in fields(made)}


def test_what_is_written_is_of_the_schema(tmp_path) -> None:
    written(data_folder(tmp_path) / "data.json")
    write_champion(tmp_path, first_champion("gs://bucket/model", (0.4, 0.3)), expected=None)
    jsonschema.validate(json.loads((tmp_path / "champion.json").read_text()), schema("champion"))
    record(RunEnd(pipeline="p", run="r", state="FAILED", error_code=9), tmp_path / "run.json")
    jsonschema.validate(json.loads((tmp_path / "run.json").read_text()), schema("run"))


def test_fields_that_are_not_known_are_kept_and_newer_formats_refused(tmp_path) -> None:
    path = data_folder(tmp_path) / "data.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "ours": [1]}))
    assert dict(read_data_record(path.parent)) == {**said, "ours": [1]}
    del said["format"]  # as versions before 0.2 wrote it
    path.write_text(json.dumps(said))
    assert dict(read_data_record(path.parent)) == said
    path.write_text(json.dumps({**said, "format": 2}))
    with pytest.raises(DataFormatError, match=r"data\.json: field format is 2, .*knows 1; update calib-core"):
        read_data_record(path.parent)


def test_of_another_programs_adapter_only_what_all_adapters_say_is_read(tmp_path) -> None:
    path = tmp_path / "calibration.json"
    theirs = {"method": "sft", "data": {"fit": "a"}}
    path.write_text(json.dumps({**theirs, "steps": "as many as it took", "history": None}))
    assert read_calibration_record(path) == theirs
    path.write_text(json.dumps({"method": "cft", "steps": "many"}))
    with pytest.raises(DataFormatError, match=r"calibration\.json: field steps is .many. where a whole"):
        read_calibration_record(path)
    path.write_text(json.dumps({**theirs, "data": ["fit"]}))
    with pytest.raises(DataFormatError, match=r"field data is .* where an object is expected"):
        read_calibration_record(path)
    assert read_calibration_record(tmp_path / "none.json") == {}


class Inner(TypedDict):
    """A part."""

    n: float | None


class Outer(TypedDict):
    """Every kind of field."""

    name: Annotated[str, "Who."]
    parts: list[Inner]
    counts: NotRequired[dict[str, int]]
    rest: NotRequired[Any]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"name": "a", "parts": [{"n": 1}, {"n": None}], "counts": {"x": 2}, "rest": {"y": []}}, ""),
        ({"name": "a", "parts": [], "other": 1}, ""),
        ({"parts": []}, "field name is missing"),
        ({"name": 1, "parts": []}, "field name is 1 where a text"),
        ({"name": "a", "parts": {}}, "field parts is {} where a list"),
        ({"name": "a", "parts": [{"n": "1"}]}, r"field parts\[0\]\.n is '1' where a number"),
        ({"name": "a", "parts": [{}]}, r"field parts\[0\]\.n is missing"),
        ({"name": "a", "parts": [], "counts": {"x": 0.5}}, "field counts.x is 0.5 where a whole number"),
    ],
)
def test_readers_and_schemas_agree(value, fault) -> None:
    if not fault:
        assert check_record(value, Outer, "it", advice="mend it") is value
        jsonschema.validate(value, schema_of(Outer))
        return
    with pytest.raises(DataFormatError, match=f"it: {fault}"):
        check_record(value, Outer, "it", advice="mend it")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, schema_of(Outer))

"""The published schemas of records, and files held to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

ROOT = Path(__file__).parents[1]


def schema(name: str) -> Any:
    """A schema of docs/formats."""
    return json.loads((ROOT / "docs" / "formats" / f"{name}.schema.json").read_text())


def written(path: Path, *, some: bool = False) -> Any:
    """What a record says, which is of its schema and has all of its fields, or with `some` no others."""
    record, published = json.loads(path.read_text()), schema(path.stem)
    jsonschema.validate(record, published)
    fields = published["properties"].keys()
    assert record.keys() <= fields if some else record.keys() == fields
    return record

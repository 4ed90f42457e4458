"""The map in ARCHITECTURE.md is that of the code, and its files are where it says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def layers(container: str) -> set[str]:
    """The rooms that import-linter knows of one package."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = [one for one in contracts if one.get("containers") == [container]]
    return {room.strip() for layer in found["layers"] for room in layer.split("|")}


@pytest.mark.parametrize(
    ("container", "folder"), [("calib_core", "calib_core"), ("calib_pipelines", "pipelines")]
)
def test_every_room_is_on_the_map(container: str, folder: str) -> None:
    rooms = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert rooms <= layers(container)
    assert [room for room in sorted(rooms) if f"`{room}/`" not in TEXT and f"/{room}/`" not in TEXT] in (
        [],
        ["examples"],
    )


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", TEXT))
    assert len(named) > 15
    places = [ROOT, ROOT / "calib_core"]
    missing = {name for name in named if not any((place / name).is_file() for place in places)}
    assert missing <= {"steps/NAME.py", "bounds.py", "target.py", "version.py"} - {
        name for name in ("bounds.py", "target.py", "version.py") if (ROOT / "calib_core" / name).is_file()
    }


def test_modules_on_the_way_of_a_question_exist() -> None:
    way = TEXT.partition("## The way of a question")[2].partition("\n## ")[0]
    named = set(
        re.findall(
            r"\b((?:storage|data|scoring|predictions|metrics|decisions|training|steps|report)\.\w+)", way
        )
    )
    assert len(named) > 12
    for name in named:
        assert (ROOT / "calib_core" / Path(*name.split("."))).with_suffix(".py").is_file(), name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "decisions").glob("0*.md")), ids=lambda path: path.stem
)
def test_every_decision_is_listed_and_says_when_to_choose_otherwise(path: Path) -> None:
    assert f"]({path.name})" in (path.parent / "README.md").read_text()
    text = path.read_text()
    assert text.startswith(f"# {int(path.name[:4])}. ")
    for part in ("**Chosen.**", "**Why.**", "**Otherwise**"):
        assert part in text

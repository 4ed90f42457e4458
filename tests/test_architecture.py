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
def test_every_room_is_on_the_map_and_has_its_layer(container: str, folder: str) -> None:
    rooms = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    assert rooms <= layers(container)
    assert {room for room in rooms if f"`{room}/`" not in TEXT} == set()


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`([a-z_/]+\.py)`", TEXT))
    assert len(named) > 10
    tops = (ROOT, ROOT / "calib_core")
    assert {name for name in named if not any((top / name).is_file() for top in tops)} == set()


def test_modules_on_the_way_of_a_question_exist() -> None:
    way = TEXT.partition("## The way of a question")[2].partition("\n## ")[0]
    rooms = "storage|data|scoring|predictions|metrics|decisions|training|steps|report"
    named = re.findall(rf"\b({rooms})\.(\w+)", way)
    assert len(named) > 12
    for room, module in named:
        assert (ROOT / "calib_core" / room / f"{module}.py").is_file(), (room, module)


def test_temporary_folders_are_made_where_what_is_left_of_them_goes() -> None:
    """By `leftovers.scratch_folder`, whose names say who made them; the standard library's don't."""
    sources = {
        path for top in ("calib_core", "components", "pipelines") for path in (ROOT / top).rglob("*.py")
    }
    using = {path for path in sources if re.search(r"^\s*(import|from) tempfile\b", path.read_text(), re.M)}
    assert {path.parent.relative_to(ROOT).as_posix() for path in using} == {"calib_core/storage"}


RECORDS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_decision_is_listed_and_says_when_to_choose_otherwise(path: Path) -> None:
    assert f"]({path.name})" in (path.parent / "README.md").read_text()
    text = path.read_text()
    assert text.startswith(f"# {int(path.name[:4])}. ")
    for part in ("**Chosen.**", "**Why.**", "**Otherwise**"):
        assert part in text

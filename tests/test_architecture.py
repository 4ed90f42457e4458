"""The map in ARCHITECTURE.md is that of the code, and its files are where it says."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

import grimp
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


def test_rooms_floors_and_arrows_stay_few() -> None:
    graph = grimp.build_graph("calib_core")
    pairs = (
        (module.split(".")[1], other.split(".")[1])
        for module in graph.modules - {"calib_core"}
        for other in graph.find_modules_directly_imported_by(module) - {"calib_core"}
    )
    arrows = {(one, other) for one, other in pairs if one != other}
    rooms = {module.split(".")[1] for module in graph.modules - {"calib_core"}}

    @functools.cache
    def floor(room: str) -> int:  # a circle would never end, and lint-imports allows none
        return 1 + max((floor(other) for one, other in arrows if one == room), default=0)

    (most,) = re.findall(r"at most (\d+) on (\d+) floors, with (\d+) arrows", TEXT)
    found = (len(rooms), max(map(floor, rooms)), len(arrows))
    assert all(count <= int(limit) for count, limit in zip(found, most, strict=True)), found


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

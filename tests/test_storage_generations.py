"""State by generation: a whole one is found at each moment, and after any damage but of all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stores
from test_storage_replacing import gone, killed_at, tree

from calib_core.errors import DataFormatError, StaleVersionError
from calib_core.storage import uris as storage
from calib_core.storage.generations import CURRENT, SEAL, Generations
from calib_core.storage.leftovers import Owner


@pytest.fixture(params=["local", "gcs", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder for the state: on this machine, or in a bucket."""
    root = tmp_path if request.param == "local" else request.getfixturevalue(request.param)
    return f"{root}/run/checkpoint"


def write(place: str, text: str) -> None:
    with Generations(place).write() as folder:
        (folder / "deep").mkdir()
        (folder / "state.json").write_text(text)
        (folder / "deep/tensors").write_text(text * 1000)


def read(place: str) -> str | None:
    folder = Generations(place).read()
    if folder is None:
        return None
    assert (folder / "deep/tensors").read_text() == (folder / "state.json").read_text() * 1000
    return (folder / "state.json").read_text()


def names(place: str) -> list[str]:
    """Generations that are there, in any state, oldest first."""
    return sorted({file.path.partition("/")[0] for file in storage.list_files(place)} - {CURRENT})


def test_the_newest_is_read_and_one_before_it_kept(place: str) -> None:
    assert read(place) is None
    for number in range(4):
        write(place, str(number))
        assert read(place) == str(number)
    assert len(names(place)) == 2
    Generations(place).drop()
    assert read(place) is None
    assert names(place) == []


def test_what_fails_leaves_the_one_before(place: str) -> None:
    write(place, "one")

    def fail(folder: Path) -> None:
        (folder / "state.json").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), Generations(place).write() as folder:
        fail(folder)
    assert read(place) == "one"
    write(place, "two")
    assert (read(place), len(names(place))) == ("two", 2)


def damage(place: str, name: str, data: bytes) -> None:
    """Change a file's bytes past our own code; in a bucket its manifest may know, or not."""
    if storage.is_remote(place):
        stores.put(place[: place.index("/", 5)], f"{place.partition('//')[2].partition('/')[2]}/{name}", data)
    else:
        (Path(place) / name).write_bytes(data)


@pytest.mark.parametrize("file", ["state.json", SEAL])
def test_a_flipped_bit_is_found_and_the_one_before_taken(
    place: str, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from calib_core.storage import objects

    monkeypatch.setattr(objects, "PAUSE_S", 0.01)
    write(place, "one")
    write(place, "two")
    newest = names(place)[-1]
    data = bytearray(storage.fetch(f"{place}/{newest}/{file}").read_bytes())
    data[-3] ^= 1
    damage(place, f"{newest}/{file}", bytes(data))
    assert read(place) == "one"
    assert f"generation {newest} is damaged" in capsys.readouterr().err
    write(place, "three")
    assert read(place) == "three"


def test_a_damaged_pointer_is_found_and_the_newest_taken(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(place, "one")
    write(place, "two")
    for data in (b"{", b"[]", b'{"generations": ["../../etc"]}', b'{"generations": []}'):
        damage(place, CURRENT, data)
        assert read(place) == "two"
        assert "current.json: is damaged; looking at all generations" in capsys.readouterr().err
    write(place, "three")
    assert read(place) == "three"


def test_where_all_are_damaged_nothing_is_invented(tmp_path: Path) -> None:
    write(str(tmp_path), "one")
    (tmp_path / names(str(tmp_path))[0] / "state.json").unlink()
    with pytest.raises(
        DataFormatError, match="none of 1 generations is whole; delete the folder to start over"
    ):
        read(str(tmp_path))


def test_what_a_killed_writer_left_goes(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, "one")
    for who in (gone(), Owner(host="01234567", pid=1, start="1")):
        with monkeypatch.context() as patch:
            patch.setattr(Owner, "here", classmethod(lambda cls, who=who: who))
            patch.setattr(Generations, "_switch", lambda *_: None)
            patch.setattr(Generations, "_sweep", lambda *_: None)
            write(place, "left")  # its folder is there, and nothing names it
    assert (read(place), len(names(place))) == ("one", 3)
    write(place, "two")
    left = [name for name in names(place) if "-01234567-" in name]
    assert (read(place), len(names(place)), len(left)) == ("two", 3, 1)  # another host's may be at work


def test_of_two_writers_in_a_bucket_the_later_switch_is_told(bucket: str) -> None:
    place = f"{bucket}/checkpoint"
    write(place, "one")
    first = Generations(place)
    named = first._named

    def late() -> tuple[list[str], str | None]:
        found = named()
        write(place, "other")
        return found

    first._named = late  # type: ignore[method-assign]
    with pytest.raises(StaleVersionError), first.write() as folder:
        (folder / "state.json").write_text("two")
    assert read(place) == "other"


def test_a_reader_whose_generation_goes_takes_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path)
    write(place, "one")
    reader = Generations(place)
    whole = reader._whole

    def slowly(name: str) -> tuple[Path | None, str]:
        reader._whole = whole  # type: ignore[method-assign]
        for number in range(3):
            write(place, f"newer {number}")
        return whole(name)

    reader._whole = slowly  # type: ignore[method-assign]
    folder = reader.read()
    assert folder is not None
    assert (folder / "state.json").read_text() == "newer 2"


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_one_before_or_the_new(tmp_path: Path) -> None:
    seen, step = [], 0
    while True:
        place = str(tmp_path / str(step))
        write(place, "one")
        killed = killed_at(step, lambda place=place: write(place, "two"))  # type: ignore[misc]
        found = read(place)
        assert found in ("one", "two")
        seen.append(found == "two")
        write(place, "three")
        assert read(place) == "three"
        assert len(names(place)) == 2
        assert not [name for name in tree(Path(place)) if name.endswith(".part")]
        if not killed:
            break
        step += 1
    assert seen == sorted(seen)
    assert seen[-1]
    assert len(seen) > 10


def test_the_pointer_is_plain_json(tmp_path: Path) -> None:
    write(str(tmp_path), "one")
    content = json.loads((tmp_path / CURRENT).read_text())
    assert content == {"format": 1, "generations": names(str(tmp_path))}
    sealed = json.loads((tmp_path / content["generations"][0] / SEAL).read_text())
    assert sealed["state.json"] == {"size_bytes": 3, "crc32": 2053932785}

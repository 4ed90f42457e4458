"""Files and folders that are written atomically, and what is never replaced."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from calib_core.errors import ConfigError, DataFormatError
from calib_core.storage.files import (
    check_output_file,
    check_output_folder,
    read_json,
    whole_file,
    whole_folder,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with whole_file(target) as temporary:
        temporary.write_text("one")
    with contextlib.suppress(RuntimeError), whole_file(target) as temporary:
        temporary.write_text("half of")
        raise RuntimeError
    assert target.read_text() == "one"
    assert names(target.parent) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("one", "two"):
        with whole_folder(target) as folder:
            (folder / name).touch()
        assert names(target) == [name]
    with contextlib.suppress(KeyboardInterrupt), whole_folder(target) as folder:
        (folder / "three").touch()
        raise KeyboardInterrupt
    assert names(target) == ["two"]
    assert names(tmp_path) == ["out"]


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {})
    with whole_folder(tmp_path / "out"):
        pass
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.json").touch()
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain.json").stat().st_mode
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_output_file_that_cant_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    table = tmp_path / "table.parquet"
    table.touch()
    check_output_file(tmp_path / "new" / "report.html", inputs=(table, None))
    with pytest.raises(ConfigError, match="is a folder; give the name of a file in it"):
        check_output_file(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be created, because .*table\.parquet is a file"):
        check_output_file(table / "report.html")
    with pytest.raises(ConfigError, match="is an input, and would be replaced"):
        check_output_file(tmp_path / "." / "table.parquet", inputs=("", table))


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"\xff"}')
    with pytest.raises(DataFormatError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert names(tmp_path) == ["a.json"]


def test_new_empty_and_own_folders_may_be_written(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new" / "out", "data.json", inputs=["owner/model", ""])
    check_output_folder(tmp_path, "data.json")
    write_json(tmp_path / "data.json", {})
    check_output_folder(tmp_path, "data.json", inputs=[tmp_path.parent])


def test_what_a_user_keeps_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "q.jsonl").touch()
    with pytest.raises(ConfigError, match=r"mine: is not empty and has no data\.json, so .* another folder"):
        check_output_folder(tmp_path / "mine", "data.json")
    with pytest.raises(ConfigError, match=r"q\.jsonl: is a file; give another folder"):
        check_output_folder(tmp_path / "mine" / "q.jsonl", "data.json")


@pytest.mark.parametrize("name", ["", "model", "model/adapter"])
def test_an_input_is_never_replaced(tmp_path: Path, monkeypatch, name: str) -> None:
    write_json(tmp_path / "calibration.json", {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"the input .* is in it; give another folder"):
        check_output_folder(tmp_path, "calibration.json", inputs=["hub/model", Path(name)])

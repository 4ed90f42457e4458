"""Whole files and folders on a mounted bucket, which renames no folders and keeps no modes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from calib_core.errors import CalibError
from calib_core.storage import disks
from calib_core.storage.files import check_output_folder, whole_file, whole_folder
from calib_core.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint

NEW = {"a.json": "{}", "deep/z.bin": "z", "m.safetensors": "m"}


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let the file system answer as gcsfuse does: folders are not renamed (`code`), modes not changed."""
    rename = os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        if Path(source).is_dir():
            raise OSError(code, os.strerror(code), str(source))
        rename(source, target, **options)

    def chmod(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    def swap(one: Any, other: Any) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(one))

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "chmod", chmod)
    monkeypatch.setattr(disks, "swap", swap)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV])
@pytest.mark.parametrize("old", [{}, {"old": "old", "deep/y": "y"}])
def test_folder_is_replaced_where_folders_are_not_renamed(
    code: int, old: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mount/model", old)
    refuse(monkeypatch, code)
    with whole_folder(tmp_path / "mount/model") as folder:
        write(folder, NEW)
    assert tree(tmp_path / "mount") == {f"model/{name}": text for name, text in NEW.items()}


def test_what_readers_begin_with_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EMFILE)
    named, rename = [], os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        rename(source, target, **options)
        if Path(target).is_relative_to(tmp_path / "model") and Path(target).suffix != ".part":
            named.append(Path(target).name)

    monkeypatch.setattr(os, "replace", replace)
    with whole_folder(tmp_path / "model") as folder:
        write(folder, NEW)
    assert sorted(named) == ["a.json", "m.safetensors", "z.bin"]
    assert named[-1] == "a.json"


@pytest.mark.parametrize("old", [{}, {"old": "old", "a.json": "[]", "deep/z.bin": "other"}])
def test_folder_that_can_not_be_filled_leaves_the_old_one(
    old: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model", old)
    refuse(monkeypatch, errno.EMFILE)
    rename = os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        if Path(source).name == "m.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        rename(source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CalibError, match="no space left"), whole_folder(tmp_path / "model") as folder:
        write(folder, NEW)
    assert tree(tmp_path) == {f"model/{name}": text for name, text in old.items()}


@pytest.mark.parametrize("old", [{}, {"old": "old", "a.json": "[]", "m.safetensors/x": "x"}])
def test_a_mount_point_is_filled(
    old: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that is mounted at the output itself: it can't be renamed, nor is anything beside it on it."""
    write(tmp_path / "out", {**old, "lost+found/x": "the file system's"})
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    made: list[Path] = []
    with whole_folder(tmp_path / "out") as folder:
        made.append(folder)
        write(folder, NEW)
    assert made[0].parent == tmp_path / "out"
    assert tree(tmp_path / "out") == {**NEW, "lost+found/x": "the file system's"}


def test_a_folder_whose_parent_is_closed_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", {"old": "old"})
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    check_output_folder(tmp_path / "out", "old")
    with whole_folder(tmp_path / "out") as folder:
        write(folder, NEW)
    assert tree(tmp_path) == {f"out/{name}": text for name, text in NEW.items()}


def test_other_failures_of_a_rename_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError), whole_folder(tmp_path / "model") as folder:
        write(folder, NEW)
    assert tree(tmp_path) == {}


def test_file_needs_no_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EMFILE)
    with whole_file(tmp_path / "a.txt") as file:
        file.write_text("a")
    assert tree(tmp_path) == {"a.txt": "a"}


def test_other_failures_of_a_mode_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(OSError, match="Input/output error"), whole_file(tmp_path / "a.txt") as file:
        file.write_text("a")
    assert tree(tmp_path) == {}


def test_checkpoints_can_be_kept_on_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EMFILE)
    empty: dict[str, Any] = {part: {} for part in ("adapter", "best_adapter", "optimizer", "random_states")}
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoint", Checkpoint(**empty, state={"step": step}))
        found = load_checkpoint(tmp_path / "checkpoint")
        assert found is not None
        assert found.state == {"step": step}

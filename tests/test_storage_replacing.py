"""Folders and files are replaced so that there always is one, wherever the process is killed."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calib_core.errors import CalibError, ConfigError
from calib_core.storage import disks, leftovers, replacing
from calib_core.storage import uris as storage
from calib_core.storage.files import check_output_folder, whole_file, whole_folder, write_json
from calib_core.storage.leftovers import OLD, PART, Owner, scratch_folder, temporary_beside
from calib_core.storage.replacing import settle

OLD_FILES = {"a.json": "old", "deep/b": "old", "gone": "old"}
NEW_FILES = {"a.json": "new", "deep/b": "new", "more/c": "new"}
STEPS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "ctypes.dlsym"}


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def swapped(patch: pytest.MonkeyPatch) -> None:
    """As on a local disk."""


def renamed(patch: pytest.MonkeyPatch) -> None:
    """As on NFS, which can't swap."""
    patch.setattr(disks, "swap", lambda one, other: fail(errno.EINVAL, one))


def filled(patch: pytest.MonkeyPatch) -> None:
    """As on a mounted bucket, which renames files, and no folders."""
    rename = os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        if Path(source).is_dir():
            fail(errno.EMFILE, source)
        rename(source, target, **options)

    renamed(patch)
    patch.setattr(os, "replace", replace)


def fail(code: int, path: Any) -> None:
    raise OSError(code, os.strerror(code), str(path))


WAYS: list[Callable[[pytest.MonkeyPatch], None]] = [swapped, renamed, filled]


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do some work in a child that is killed before a step of it; whether there were that many steps."""
    child = os.fork()
    if child == 0:
        left = [step]

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            if event in STEPS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def replace(target: Path) -> None:
    with whole_folder(target) as folder:
        write(folder, NEW_FILES)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_any_step_leaves_the_old_folder_or_the_new(
    way: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    seen, step = [], 0
    while True:
        target = tmp_path / f"{step}" / "model"
        write(target, OLD_FILES)
        killed = killed_at(step, lambda target=target: replace(target))  # type: ignore[misc]
        if way is swapped:
            assert target.exists()  # at each moment, for readers that know nothing of this
        found = tree(storage.fetch(target))
        assert found in (OLD_FILES, NEW_FILES)
        seen.append(found == NEW_FILES)
        replace(target)
        assert tree(target.parent) == {f"model/{name}": text for name, text in NEW_FILES.items()}
        if not killed:
            break
        step += 1
    assert seen == sorted(seen)
    assert seen[-1]
    assert len(seen) > 10


def test_readers_find_a_folder_at_each_moment(tmp_path: Path) -> None:
    write(tmp_path / "model", OLD_FILES)
    missed, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            if not (tmp_path / "model/a.json").exists():
                missed.append(time.monotonic())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        replace(tmp_path / "model")
    done.set()
    reader.join()
    assert missed == []


def test_readers_wait_for_one_who_is_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed(monkeypatch)
    write(tmp_path / "model", OLD_FILES)
    between, move = threading.Event(), replacing._move

    def slowly(new: Path, target: Path) -> None:
        between.set()
        time.sleep(0.2)
        move(new, target)

    monkeypatch.setattr(replacing, "_move", slowly)
    writer = threading.Thread(target=replace, args=(tmp_path / "model",))
    writer.start()
    assert between.wait(10)
    assert not (tmp_path / "model").exists()
    assert tree(storage.fetch(tmp_path / "model")) == NEW_FILES
    writer.join()


def gone() -> Owner:
    """A process of this host that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    owner = Owner(host=Owner.here().host, pid=child, start=leftovers._start_of(child) or "0")
    os.waitpid(child, 0)
    return owner


@pytest.mark.parametrize(
    ("owner", "age_s", "left"),
    [
        (Owner.here, 1e9, True),
        (gone, 0.0, False),
        (
            lambda: Owner(host=Owner.here().host, pid=os.getpid(), start="1"),
            0.0,
            False,
        ),  # its number is used again
        (lambda: Owner(host="01234567", pid=os.getpid(), start="1"), 3600.0, True),
        (lambda: Owner(host="01234567", pid=os.getpid(), start="1"), 8 * 24 * 3600.0, False),
    ],
)
def test_what_others_left_goes_when_they_are_gone(
    owner: Callable[[], Owner], age_s: float, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = owner()
    with monkeypatch.context() as patch:
        patch.setattr(Owner, "here", classmethod(lambda cls: who))
        folder, file = (temporary_beside(tmp_path / name, PART) for name in ("model", "a.json"))
    write(folder, OLD_FILES)
    file.write_text("half")
    for path in (*folder.rglob("*"), folder, file):
        os.utime(path, (time.time() - age_s,) * 2)
    replace(tmp_path / "model")
    write_json(tmp_path / "a.json", {})
    assert (folder.exists(), file.exists()) == (left, left)


def test_names_of_others_are_left_alone(tmp_path: Path) -> None:
    names = (".model.part", ".model.0123abcd.part", ".other.01234567-1-1.01234567.part", "model.old")
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1, 1))
    replace(tmp_path / "model")
    settle(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model", *names}


def test_scratch_folders_of_processes_that_are_gone_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"calib-{gone()}-abc"
    write(left, OLD_FILES)
    (tmp_path / "calib-results").mkdir()
    os.utime(tmp_path / "calib-results", (1, 1))
    with scratch_folder() as mine, scratch_folder() as another:
        assert not left.exists()
        assert mine.is_dir()
        assert another.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["calib-results"]


@pytest.mark.parametrize("length", [1, 150, 151, 255])
def test_names_of_any_length_can_be_replaced(length: int, tmp_path: Path) -> None:
    target = tmp_path / ("ü" * (length // 2) + "x" * (length % 2))
    for _ in range(2):
        replace(target)
    assert tree(target) == NEW_FILES
    with whole_file(tmp_path / ("y" * length)) as file:
        file.write_text("x")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_bytes_are_on_the_disk_before_they_have_their_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, Path]] = []
    sync, rename = disks.sync, os.replace

    def synced(path: Path) -> None:
        steps.append(("sync", path))
        sync(path)

    def replaced(source: Any, target: Any, **options: Any) -> None:
        steps.append(("name", Path(target)))
        rename(source, target, **options)

    monkeypatch.setattr(disks, "sync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    target = tmp_path / "x"
    if kind == "file":
        with whole_file(target) as part:
            part.write_text("x")
        inside = {part}
    else:
        with whole_folder(target) as part:
            write(part, NEW_FILES)
        inside = {part, part / "deep", part / "more", *(part / name for name in NEW_FILES)}
    named = steps.index(("name", target))
    assert {path for step, path in steps[:named]} == inside
    assert steps[named + 1 :] == [("sync", tmp_path)]


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    write(tmp_path / "disk/model", OLD_FILES)
    (tmp_path / "model").symlink_to("disk/model")
    (tmp_path / "a.txt").symlink_to("disk/a.txt")
    replace(tmp_path / "model")
    with whole_file(tmp_path / "a.txt") as file:
        file.write_text("a")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "a.txt").is_symlink()
    assert tree(tmp_path / "disk") == {"a.txt": "a", **{f"model/{n}": text for n, text in NEW_FILES.items()}}


def test_a_file_is_no_folder_to_replace(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(ConfigError, match="model: is a file"):
        replace(tmp_path / "model")
    assert tree(tmp_path) == {"model": "x"}


class TestBeforeTheWork:
    """Places that can't be written are found before hours of work, not after."""

    def check(self, target: Path, message: str) -> None:
        for check in (
            lambda: check_output_folder(target, "a.json"),
            lambda: storage.published(target).__enter__(),
        ):
            with pytest.raises(CalibError, match=message) as caught:
                check()
            assert str(target.name[:20]) in str(caught.value)

    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        self.check(tmp_path / "file/out", "cannot be created, because .*/file is a file")
        self.check(tmp_path / "file/more/out", "cannot be created, because .*/file is a file")

    def test_too_long(self, tmp_path: Path) -> None:
        self.check(tmp_path / ("x" * 256), "a name in it is longer than 255 bytes")
        self.check(tmp_path / ("ü" * 128) / "xxx", "a name in it is longer than 255 bytes")

    def test_where_nothing_can_be_written(self) -> None:
        self.check(Path("/proc/self/out"), r"can't be written \(/proc/")

    @pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
    def test_read_only(self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: fail(code, dir))
        self.check(tmp_path / "out", rf"can't be written \(.*: {os.strerror(code)}\); give another path")

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_full(self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: fail(code, dir))
        self.check(tmp_path / "out", r"no space left \(\d+ of \d+ MB are free there\)")

    def test_almost_full_and_what_to_free(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
        usage = type(disks.shutil.disk_usage(tmp_path))
        monkeypatch.setattr(disks.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
        self.check(
            tmp_path / "out", r"no space left \(1 of 1000 MB .*free some space, or give a path on another"
        )
        write(tmp_path / "cache/gcs", {"model": "x" * 3_000_000})
        self.check(tmp_path / "out", r"the cache .*/cache holds 3 MB and can be emptied while nothing runs")

    def test_a_mount_that_tells_no_size_is_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = type(disks.shutil.disk_usage(tmp_path))
        monkeypatch.setattr(disks.shutil, "disk_usage", lambda path: usage(0, 0, 0))
        check_output_folder(tmp_path / "out", "a.json")

    def test_what_an_interrupted_run_left_is_no_content(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        temporary_beside(target, OLD, within=target).mkdir(parents=True)
        (target / "lost+found").mkdir()
        check_output_folder(target, "a.json")
        (target / "mine").touch()
        with pytest.raises(ConfigError, match=r"is not empty and has no a\.json"):
            check_output_folder(target, "a.json")


def test_a_disk_that_fills_up_is_told_and_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model", OLD_FILES)
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", lambda handle: fail(errno.ENOSPC, tmp_path / "model"))
    with pytest.raises(CalibError, match=r"model: no space left .* MB are free"):
        replace(tmp_path / "model")
    with pytest.raises(CalibError, match="no space left"), whole_file(tmp_path / "a.txt") as file:
        file.write_text("new")
    assert tree(tmp_path) == {"a.txt": "old", **{f"model/{name}": text for name, text in OLD_FILES.items()}}


def test_what_a_bucket_does_not_take_is_kept(
    gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calib_core.storage import objects

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def refuse(*_: object) -> None:
        raise ConfigError("the bucket is closed")

    def make() -> None:
        with storage.published(f"{gcs}/run/model") as path:
            write(path, NEW_FILES)
            monkeypatch.setattr(objects, "publish", refuse)

    with pytest.raises(ConfigError, match="the bucket is closed; what was made is kept at") as caught:
        make()
    kept = re.search(r"kept at (\S+),", str(caught.value))
    assert kept is not None
    assert tree(Path(kept[1])) == NEW_FILES

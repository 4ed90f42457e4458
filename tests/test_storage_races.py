"""Two who publish to one place at once: one of them wins, and nothing of the other is among its files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stores
from test_storage_replacing import WAYS, tree, write

from calib_core.errors import StaleVersionError
from calib_core.storage import bucket as limits
from calib_core.storage import objects, publishing
from calib_core.storage import uris as storage
from calib_core.storage.locations import locate

SLICE = 1000
LARGE = 3 * SLICE + 1


class EndedError(Exception):
    """As if the process had been killed."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAUSE_S", 0.01)
    monkeypatch.setattr(limits, "SLICE_BYTES", SLICE)


@pytest.fixture
def honoured(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The services honour the condition of a delete; the emulator and moto don't."""
    if bucket.startswith("gs:"):
        from google.cloud.storage import Blob

        delete = Blob.delete

        def checked(self: Blob, if_generation_match: int | None = None, **options: Any) -> None:
            found = self.bucket.get_blob(self.name)
            if if_generation_match is None or (found and found.generation == if_generation_match):
                delete(self, **options)

        monkeypatch.setattr(Blob, "delete", checked)


def make(folder: Path, files: dict[str, str]) -> Path:
    write(folder, files)
    return folder


def once_before(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[[], object], *, path: str = ""
) -> None:
    """Do something just before the first call of a method that concerns a path."""
    method, waiting = getattr(owner, name), [act]

    def called(self: Any, first: Any, *given: Any, **options: Any) -> Any:
        if str(getattr(first, "name", first)).endswith(path):
            with contextlib.suppress(IndexError):  # several threads may come here
                act = waiting.pop()
                act()
        return method(self, first, *given, **options)

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize("there", ["", "two"])
def test_who_was_overtaken_writes_over_nothing_that_the_other_left_as_it_was(
    bucket: str, size: int, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bucket.startswith("gs:") and size == LARGE:
        pytest.skip("the emulator honours no condition when it puts slices together")
    uri, sides = f"{bucket}/model", {side: {"a": side[0] * size, "b": side} for side in ("one", "two")}
    if there:
        storage.publish(make(tmp_path / "there", sides[there]), uri)
    folders = {side: make(tmp_path / side, files) for side, files in sides.items()}
    once_before(
        monkeypatch, stores.kind(bucket), "upload", lambda: storage.publish(folders["two"], uri), path="/a"
    )
    with pytest.raises(StaleVersionError):
        storage.publish(folders["one"], uri)
    assert tree(storage.fetch(uri)) == sides["two"]


def test_who_was_overtaken_removes_nothing_that_the_other_has_brought(
    bucket: str, honoured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, files = f"{bucket}/model", {"a": "a", "b": "b"}
    whole, other = make(tmp_path / "whole", files), make(tmp_path / "other", {"c": "c"})
    storage.publish(whole, uri)
    once_before(monkeypatch, stores.kind(bucket), "discard", lambda: storage.publish(whole, uri))
    with pytest.raises(StaleVersionError):
        storage.publish(other, uri)
    assert tree(storage.fetch(uri)) == files
    assert {file.path for file in storage.list_files(uri)} == set(files)


def test_who_was_overtaken_leaves_nothing(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{bucket}/model"
    one, two = make(tmp_path / "one", {"a": "1", "only": "1"}), make(tmp_path / "two", {"a": "2"})
    once_before(monkeypatch, stores.kind(bucket), "upload", lambda: storage.publish(two, uri), path="/only")
    with pytest.raises(StaleVersionError):
        storage.publish(one, uri)
    assert stores.keys(bucket) == {"model/a", "model/.calib-manifest.json"}
    assert tree(storage.fetch(uri)) == {"a": "2"}


def test_two_who_send_the_same_large_file_do_not_stop_each_other(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share what is on its way, which one who ends or gives up removes; so the services answer 404."""
    (tmp_path / "file").write_bytes(b"x" * LARGE)

    def raised(error: Exception) -> Callable[[], object]:
        def act() -> None:
            raise error

        return act

    if bucket.startswith("gs:"):
        from google.api_core.exceptions import NotFound
        from google.cloud.storage import Blob

        once_before(monkeypatch, Blob, "compose", raised(NotFound("slice")))
    else:
        from botocore.exceptions import ClientError

        from calib_core.storage import s3_upload

        answer: Any = {"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
        once_before(monkeypatch, s3_upload._Parts, "_part", raised(ClientError(answer, "UploadPart")))
    storage.publish(tmp_path / "file", f"{bucket}/file")
    assert stores.keys(bucket) == {"file"}
    assert storage.fetch(f"{bucket}/file").read_bytes() == b"x" * LARGE


def test_who_was_overtaken_in_the_same_second_is_told(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have written the same words by then, of which S3 makes the same version."""
    uri, folder = f"{bucket}/model", make(tmp_path / "model", {"a": "a"})

    class Still(publishing.datetime):  # type: ignore[name-defined, misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(publishing, "datetime", Still)
    store, upload = stores.kind(bucket), stores.kind(bucket).upload

    def overtaken() -> None:
        def ended(*given: Any, **options: Any) -> None:
            raise EndedError

        with monkeypatch.context() as patch:
            patch.setattr(store, "upload", ended)
            with pytest.raises(EndedError):
                storage.publish(folder, uri)

    once_before(monkeypatch, store, "upload", overtaken)
    with pytest.raises(StaleVersionError):
        storage.publish(folder, uri)
    monkeypatch.setattr(store, "upload", upload)
    storage.publish(folder, uri)
    assert tree(storage.fetch(uri)) == {"a": "a"}


@pytest.mark.parametrize("size", [0, 1, LARGE])
def test_a_renewed_object_has_its_content_and_another_version(bucket: str, size: int, tmp_path: Path) -> None:
    file, location = tmp_path / "file", locate(f"{bucket}/file")
    file.write_bytes(b"x" * size)
    storage.publish(file, f"{bucket}/file")
    store = storage._open(location)
    versions = [store.stat("file")]
    for _ in range(3):
        versions.append(store.renew(versions[-1], file))
        assert versions[-1].version != versions[-2].version
        assert versions[-1] == store.stat("file")
    assert len({(obj.size_bytes, obj.crc32c) for obj in versions}) == 1
    assert storage.fetch(f"{bucket}/file").read_bytes() == file.read_bytes()
    with pytest.raises(StaleVersionError):
        store.renew(versions[-2], file)
    store.discard(versions[-2])
    assert store.stat("file") == versions[-1] or bucket.startswith("gs:")  # whose emulator deletes anyway


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_of_folders_that_are_published_at_once_one_is_there(
    way: Callable[[pytest.MonkeyPatch], None], there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    sides = [{f"f{n}": f"{side} {n}" for n in range(5)} | {f"own-{side}": ""} for side in range(3)]
    folders = [make(tmp_path / str(side), files) for side, files in enumerate(sides)]
    start = threading.Barrier(len(sides))

    def publish(folder: Path, target: Path) -> None:
        start.wait()
        storage.publish(folder, target)

    with ThreadPoolExecutor(len(sides)) as pool:
        for turn in range(15):
            target = tmp_path / "out" / str(0 if there else turn)
            for done in [pool.submit(publish, folder, target) for folder in folders]:
                done.result()
            assert tree(target) in sides
            assert {path.name for path in target.parent.iterdir()} >= {target.name}
            assert not [path for path in target.parent.rglob("*") if path.name.startswith(".")]

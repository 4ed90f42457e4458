"""A network that fails: each fault ends in the whole right result, or a clear error and nothing by halves."""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
import stores
from fault_proxy import FaultProxy, fault_proxy

from calib_core.errors import ConfigError, DataFormatError, StaleVersionError
from calib_core.storage import bucket as limits
from calib_core.storage import objects
from calib_core.storage import uris as storage

pytestmark = pytest.mark.slow  # faults are waited for, a second each

SLICE = 64 * 1024
BIG = os.urandom(5 * SLICE + 1234)
MANY = os.urandom(40 * SLICE)  # more slices than one request of Google's can put together


@dataclass(frozen=True)
class Wire:
    """How a store's requests look: regular expressions found in "METHOD /path?query".

    Attributes:
        server: the fixture with its URL.
        variable: what points the client there.
        media: asks for the content of an object, `{}`.
        upload: brings content.
        part: brings content of a large file.
        combine: puts slices together.
    """

    server: str
    variable: str
    media: str
    upload: str
    part: str
    combine: str


WIRES = {
    "gs": Wire(
        server="gcs_server",
        variable="STORAGE_EMULATOR_HOST",
        media=r"^GET .*{}\?.*alt=media",
        upload=r"^POST /upload/",
        part=r"^POST /upload/",
        combine=r"^POST .*/compose",
    ),
    "s3": Wire(
        server="s3_server",
        variable="AWS_ENDPOINT_URL_S3",
        media=r"^GET [^?]*{}$",
        upload=r"^PUT ",
        part=r"^PUT .*partNumber=",
        combine=r"^POST .*uploadId=",
    ),
}


@pytest.fixture
def wire(bucket: str) -> Wire:
    """How the requests of the bucket's store look."""
    return WIRES[bucket.partition(":")[0]]


@pytest.fixture
def proxy(
    bucket: str, wire: Wire, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """A proxy before the server, which the client is pointed at; slices are small, patience short."""
    monkeypatch.setattr(limits, "SLICE_BYTES", SLICE)
    monkeypatch.setattr(limits, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(objects, "PAUSE_S", 0.01)
    with fault_proxy(request.getfixturevalue(wire.server)) as running:
        monkeypatch.setenv(wire.variable, running.url)
        yield running


def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RETRY_S", 0.5)
    monkeypatch.setattr(limits, "MOVING_RETRY_S", 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to publish: two small files and one that travels in slices."""
    path = tmp_path / "model"
    path.mkdir()
    for name, data in {"config.json": b"{}" * 500, "notes.txt": b"n" * 999, "model.safetensors": BIG}.items():
        (path / name).write_bytes(data)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leftovers(cache: Path) -> list[str]:
    """What lies in the cache besides locks and finished downloads."""
    return [path.name for path in cache.glob("*/*") if path.suffix not in ("", ".lock")]


@pytest.mark.parametrize("kind", ["reset", "truncated", "short", "flipped", "slow", "503", "429"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_download_with_a_fault_comes_out_whole(
    proxy: FaultProxy, wire: Wire, bucket: str, folder: Path, tmp_path: Path, kind: str, name: str
) -> None:
    storage.publish(folder, f"{bucket}/model")
    times = 1 if kind == "slow" else 2
    fault = proxy.add(kind, wire.media.format(name), times)
    assert tree(storage.fetch(f"{bucket}/model")) == tree(folder)
    assert fault.seen == times
    assert leftovers(tmp_path / "cache") == []


def test_a_broken_slice_goes_on_where_it_stopped(
    proxy: FaultProxy, wire: Wire, bucket: str, folder: Path
) -> None:
    storage.publish(folder, f"{bucket}/model")
    proxy.add("truncated", wire.media.format("safetensors"))  # a reset may take back what was sent
    proxy.requests.clear()
    storage.fetch(f"{bucket}/model")
    pattern = wire.media.format("safetensors")
    media = [headers for line, headers in proxy.requests if re.search(pattern, line)]
    starts = sorted(int(h["range"].removeprefix("bytes=").partition("-")[0]) for h in map(lower, media))
    again = [start for start in starts if start % SLICE]
    assert len(starts) == 7  # six slices, and the rest of the broken one
    assert len(again) == 1


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("kind", ["reset", "503", "429", "lost"])
def test_an_upload_with_a_fault_comes_out_whole(
    proxy: FaultProxy, wire: Wire, bucket: str, folder: Path, kind: str
) -> None:
    faults = [proxy.add(kind, wire.upload, times=3), proxy.add(kind, wire.combine)]
    storage.publish(folder, f"{bucket}/model")
    assert [fault.seen for fault in faults] == [3, 1]
    assert tree(storage.fetch(f"{bucket}/model")) == tree(folder)
    names = {Path(file.uri).name for file in storage.list_files(f"{bucket}/model")}
    assert names == set(tree(folder))
    assert stores.keys(bucket) == {f"model/{name}" for name in [*names, ".calib-manifest.json"]}


def test_many_slices_are_put_together_in_their_order(
    proxy: FaultProxy, wire: Wire, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(MANY)
    storage.publish(tmp_path / "big", f"{bucket}/big")
    assert storage.fetch(f"{bucket}/big").read_bytes() == MANY
    assert stores.keys(bucket) == {"big"}


@pytest.mark.parametrize("kind", ["reset", "lost", "503", "429"])
def test_a_versioned_write_with_a_fault_is_written_once(
    proxy: FaultProxy, wire: Wire, bucket: str, kind: str
) -> None:
    """An answer that is lost after the write must not look like a race that was lost."""
    proxy.add(kind, wire.upload)
    first = storage.write_versioned(f"{bucket}/champion.json", b"one", expected=None)
    proxy.add(kind, wire.upload)
    proxy.add(kind, wire.media.format("json"))
    second = storage.write_versioned(f"{bucket}/champion.json", b"two", expected=first)
    assert storage.read_versioned(f"{bucket}/champion.json") == (b"two", second)
    with pytest.raises(StaleVersionError):
        storage.write_versioned(f"{bucket}/champion.json", b"three", expected=first)


def test_an_interrupted_folder_goes_on_with_what_is_missing(
    proxy: FaultProxy, wire: Wire, bucket: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish(folder, f"{bucket}/model")
    fault = proxy.add("503", wire.media.format("safetensors"), times=10**6)
    give_up_soon(monkeypatch)
    with pytest.raises(ConfigError, match="can't be reached, or does not answer"):
        storage.fetch(f"{bucket}/model")
    assert not [
        path for path in (tmp_path / "cache").glob("*/*") if not path.suffix
    ]  # nothing looks finished
    fault.times = 0
    proxy.requests.clear()
    assert tree(storage.fetch(f"{bucket}/model")) == tree(folder)
    lines = [line for line, _ in proxy.requests if re.search(wire.media.format(""), line)]
    fetched = {unquote(line.partition("?")[0]).rpartition("/")[2] for line in lines}
    assert fetched == {".calib-manifest.json", "model.safetensors"}


def test_an_interrupted_upload_goes_on_with_what_is_missing(
    proxy: FaultProxy, wire: Wire, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").write_bytes(BIG)
    fault = proxy.add("503", wire.combine, times=10**6)
    give_up_soon(monkeypatch)
    with pytest.raises(ConfigError, match="can't be reached, or does not answer"):
        storage.publish(tmp_path / "big", f"{bucket}/run/big")
    assert not storage.exists(f"{bucket}/run/big")
    assert not storage.exists(f"{bucket}/run")  # slices alone are no folder
    fault.times = 0
    proxy.requests.clear()
    storage.publish(tmp_path / "big", f"{bucket}/run/big")
    assert not [line for line, _ in proxy.requests if re.search(wire.part, line)]
    assert storage.fetch(f"{bucket}/run/big").read_bytes() == BIG


def test_a_download_that_stays_damaged_is_refused(
    proxy: FaultProxy, wire: Wire, bucket: str, folder: Path, tmp_path: Path
) -> None:
    storage.publish(folder, f"{bucket}/model")
    proxy.add("flipped", wire.media.format("config.json"), times=10**6)
    with pytest.raises(DataFormatError, match=r"config\.json: arrived damaged 3 times"):
        storage.fetch(f"{bucket}/model", into=tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("kind", ["flipped", "short"])
def test_a_small_file_that_arrives_damaged_is_read_again_or_refused(
    proxy: FaultProxy, wire: Wire, bucket: str, kind: str
) -> None:
    version = storage.write_versioned(f"{bucket}/champion.json", b"content", expected=None)
    fault = proxy.add(kind, wire.media.format("json"), times=2)
    assert storage.read_versioned(f"{bucket}/champion.json") == (b"content", version)
    assert fault.seen == 2
    proxy.add(kind, wire.media.format("json"), times=10**6)
    with pytest.raises(DataFormatError, match=r"champion\.json: arrived damaged 3 times"):
        storage.read_versioned(f"{bucket}/champion.json")


def test_a_folder_whose_upload_fails_is_never_taken_for_whole(
    proxy: FaultProxy, wire: Wire, bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish(folder, f"{bucket}/model")
    (folder / "notes.txt").write_bytes(b"changed")
    give_up_soon(monkeypatch)
    proxy.add("ok", wire.upload)  # the mark that the folder is being written
    fault = proxy.add("503", wire.upload, times=10**6)
    with pytest.raises(ConfigError, match="does not answer"):
        storage.publish(folder, f"{bucket}/model")
    with pytest.raises(DataFormatError, match="is being written since"):
        storage.fetch(f"{bucket}/model")
    fault.times = 0
    storage.publish(folder, f"{bucket}/model")
    assert tree(storage.fetch(f"{bucket}/model")) == tree(folder)


USES: list[Callable[[str, Path], object]] = [
    lambda uri, path: storage.fetch(uri),
    lambda uri, path: storage.publish(path, uri),
    lambda uri, path: storage.exists(uri),
    lambda uri, path: storage.list_files(uri),
    lambda uri, path: storage.read_versioned(uri),
    lambda uri, path: storage.write_versioned(uri, b"", expected=None),
    lambda uri, path: storage.delete(uri),
]


REFUSED = {
    ("gs", "403"): "no permission .*role Storage Object User",
    ("gs", "401"): "no Google credentials; run `gcloud auth",
    ("s3", "403"): "no permission .*let the account of the environment s3:ListBucket on s3://",
    ("s3", "401"): "no permission .*s3:PutObject",
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("status", ["403", "401"])
def test_without_permission_the_message_says_what_to_do(
    proxy: FaultProxy, bucket: str, folder: Path, use: Callable[[str, Path], object], status: str
) -> None:
    proxy.add(status, "", times=10**6)
    with pytest.raises(ConfigError, match=REFUSED[bucket.partition(":")[0], status]) as caught:
        use(f"{bucket}/name", folder / "notes.txt")
    assert caught.value.exit_code == 2
    lines = [line for line, _ in proxy.requests]
    assert len(lines) == len(set(lines))  # what is refused is not tried again


@pytest.mark.parametrize("use", USES)
def test_a_missing_bucket_is_named(bucket: str, folder: Path, use: Callable[[str, Path], object]) -> None:
    missing = f"{bucket.partition(':')[0]}://calib-missing-{uuid.uuid4().hex}"
    with pytest.raises(ConfigError, match=f"there is no bucket {missing}; check its name") as caught:
        use(f"{missing}/name", folder / "notes.txt")
    assert caught.value.exit_code == 2


def test_a_missing_object_is_named(bucket: str) -> None:
    with pytest.raises(DataFormatError, match=f"{bucket}/no/model: no such object, and none below"):
        storage.fetch(f"{bucket}/no/model")


def test_an_unreachable_service_is_named(bucket: str, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv(wire.variable, f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(limits, "FIRST_PAUSE_S", 0.05)
        give_up_soon(monkeypatch)
        with pytest.raises(ConfigError, match="can't be reached, or does not answer") as caught:
            storage.fetch(f"{bucket}/name")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["reset", "truncated", "503"])
def test_an_answer_that_breaks_off_where_there_is_nothing_is_asked_for_again(
    bucket: str, proxy: FaultProxy, kind: str
) -> None:
    fault = proxy.add(kind, r"^GET .*none\.json")
    assert storage.read_versioned(f"{bucket}/none.json") is None
    assert fault.seen == 1


@pytest.mark.parametrize("turn", range(3))
def test_of_two_who_publish_one_folder_one_wins(
    bucket: str, turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAUSE_S", 0.01)
    contents = [{f"{i}.bin": bytes([side]) * 2000 for i in range(6)} for side in (1, 2)]
    for side, files in enumerate(contents):
        (tmp_path / str(side)).mkdir()
        for name, data in files.items():
            (tmp_path / str(side) / name).write_bytes(data)

    def publish(side: int) -> bool:
        try:
            storage.publish(tmp_path / str(side), f"{bucket}/model")
        except StaleVersionError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(publish, (0, 1)))
    published = [files for files, winner in zip(contents, won, strict=True) if winner]
    assert tree(storage.fetch(f"{bucket}/model")) in published  # both, where one began after the other's end

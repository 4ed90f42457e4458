"""A network that fails: each fault ends in the whole right result, or a clear error and nothing by halves."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
from fault_proxy import FaultProxy, fault_proxy

from calib_core.errors import ConfigError, DataFormatError, StaleVersionError
from calib_core.storage import gcs as remote
from calib_core.storage import gcs_transfer
from calib_core.storage import uris as storage

pytestmark = pytest.mark.slow  # faults are waited for, a second each

SLICE = 64 * 1024
BIG = os.urandom(5 * SLICE + 1234)
MANY = os.urandom(40 * SLICE)  # more slices than one request can put together
MEDIA, UPLOAD = r"^GET .*alt=media", r"^POST /upload/"


@pytest.fixture
def proxy(gcs: str, gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the emulator, which the client is pointed at; slices are small, patience short."""
    monkeypatch.setattr(gcs_transfer, "SLICE_BYTES", SLICE)
    monkeypatch.setattr(gcs_transfer, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    with fault_proxy(gcs_server) as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_transfer, "RETRY_S", 0.5)
    monkeypatch.setattr(gcs_transfer, "MOVING_RETRY_S", 0.5)


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
    return [path.name for path in cache.glob("gcs/*") if path.suffix not in ("", ".lock")]


@pytest.mark.parametrize("kind", ["reset", "truncated", "short", "flipped", "slow", "503", "429"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_download_with_a_fault_comes_out_whole(
    proxy: FaultProxy, gcs: str, folder: Path, tmp_path: Path, kind: str, name: str
) -> None:
    storage.publish(folder, f"{gcs}/model")
    times = 1 if kind == "slow" else 2
    fault = proxy.add(kind, rf"^GET .*{name}\?.*alt=media", times)
    assert tree(storage.fetch(f"{gcs}/model")) == tree(folder)
    assert fault.seen == times
    assert leftovers(tmp_path / "cache") == []


def test_a_broken_slice_goes_on_where_it_stopped(proxy: FaultProxy, gcs: str, folder: Path) -> None:
    storage.publish(folder, f"{gcs}/model")
    proxy.add("truncated", r"^GET .*model\.safetensors\?.*alt=media")  # a reset may take back what was sent
    proxy.requests.clear()
    storage.fetch(f"{gcs}/model")
    media = [
        headers for line, headers in proxy.requests if "model.safetensors?" in line and "alt=media" in line
    ]
    starts = sorted(int(h["range"].removeprefix("bytes=").partition("-")[0]) for h in map(lower, media))
    again = [start for start in starts if start % SLICE]
    assert len(starts) == 7  # six slices, and the rest of the broken one
    assert len(again) == 1


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("kind", ["reset", "503", "429", "lost"])
def test_an_upload_with_a_fault_comes_out_whole(proxy: FaultProxy, gcs: str, folder: Path, kind: str) -> None:
    faults = [proxy.add(kind, UPLOAD, times=3), proxy.add(kind, r"^POST .*/compose")]
    storage.publish(folder, f"{gcs}/model")
    assert [fault.seen for fault in faults] == [3, 1]
    assert tree(storage.fetch(f"{gcs}/model")) == tree(folder)
    names = {Path(file.uri).name for file in storage.list_files(f"{gcs}/model")}
    assert names == set(tree(folder))
    assert object_names(gcs) == {f"model/{name}" for name in [*names, ".calib-manifest.json"]}


def object_names(gcs: str) -> set[str]:
    from google.cloud.storage import Client

    return {blob.name for blob in Client(project=None).list_blobs(gcs.removeprefix("gs://"))}


def test_many_slices_are_put_together_in_their_order(proxy: FaultProxy, gcs: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(MANY)
    storage.publish(tmp_path / "big", f"{gcs}/big")
    assert storage.fetch(f"{gcs}/big").read_bytes() == MANY
    assert object_names(gcs) == {"big"}


@pytest.mark.parametrize("kind", ["reset", "lost", "503", "429"])
def test_a_versioned_write_with_a_fault_is_written_once(proxy: FaultProxy, gcs: str, kind: str) -> None:
    """An answer that is lost after the write must not look like a race that was lost."""
    proxy.add(kind, UPLOAD)
    first = storage.write_versioned(f"{gcs}/champion.json", b"one", expected=None)
    proxy.add(kind, UPLOAD)
    proxy.add(kind, MEDIA)
    second = storage.write_versioned(f"{gcs}/champion.json", b"two", expected=first)
    assert storage.read_versioned(f"{gcs}/champion.json") == (b"two", second)
    with pytest.raises(StaleVersionError):
        storage.write_versioned(f"{gcs}/champion.json", b"three", expected=first)


def test_an_interrupted_folder_goes_on_with_what_is_missing(
    proxy: FaultProxy, gcs: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish(folder, f"{gcs}/model")
    fault = proxy.add("503", r"^GET .*safetensors\?.*alt=media", times=10**6)
    give_up_soon(monkeypatch)
    with pytest.raises(ConfigError, match="can't be reached, or does not answer"):
        storage.fetch(f"{gcs}/model")
    assert not [
        path for path in (tmp_path / "cache/gcs").iterdir() if not path.suffix
    ]  # nothing looks finished
    fault.times = 0
    proxy.requests.clear()
    assert tree(storage.fetch(f"{gcs}/model")) == tree(folder)
    lines = [unquote(line.partition("?")[0]) for line, _ in proxy.requests if "alt=media" in line]
    fetched = {line.rpartition("/")[2] for line in lines}
    assert fetched == {".calib-manifest.json", "model.safetensors"}


def test_an_interrupted_upload_goes_on_with_what_is_missing(
    proxy: FaultProxy, gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").write_bytes(BIG)
    fault = proxy.add("503", r"^POST .*/compose", times=10**6)
    give_up_soon(monkeypatch)
    with pytest.raises(ConfigError, match="can't be reached, or does not answer"):
        storage.publish(tmp_path / "big", f"{gcs}/run/big")
    assert not storage.exists(f"{gcs}/run/big")
    assert not storage.exists(f"{gcs}/run")  # slices alone are no folder
    fault.times = 0
    proxy.requests.clear()
    storage.publish(tmp_path / "big", f"{gcs}/run/big")
    assert not [line for line, _ in proxy.requests if line.startswith("POST /upload/")]
    assert storage.fetch(f"{gcs}/run/big").read_bytes() == BIG


def test_a_download_that_stays_damaged_is_refused(
    proxy: FaultProxy, gcs: str, folder: Path, tmp_path: Path
) -> None:
    storage.publish(folder, f"{gcs}/model")
    proxy.add("flipped", r"^GET .*config\.json\?.*alt=media", times=10**6)
    with pytest.raises(DataFormatError, match=r"config\.json: arrived damaged 3 times"):
        storage.fetch(f"{gcs}/model", into=tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_whose_upload_fails_is_never_taken_for_whole(
    proxy: FaultProxy, gcs: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish(folder, f"{gcs}/model")
    (folder / "notes.txt").write_bytes(b"changed")
    give_up_soon(monkeypatch)
    proxy.add("ok", r"^POST /upload/")  # the mark that the folder is being written
    fault = proxy.add("503", UPLOAD, times=10**6)
    with pytest.raises(ConfigError, match="does not answer"):
        storage.publish(folder, f"{gcs}/model")
    with pytest.raises(DataFormatError, match="is being written since"):
        storage.fetch(f"{gcs}/model")
    fault.times = 0
    storage.publish(folder, f"{gcs}/model")
    assert tree(storage.fetch(f"{gcs}/model")) == tree(folder)


USES: list[Callable[[str, Path], object]] = [
    lambda uri, path: storage.fetch(uri),
    lambda uri, path: storage.publish(path, uri),
    lambda uri, path: storage.exists(uri),
    lambda uri, path: storage.list_files(uri),
    lambda uri, path: storage.read_versioned(uri),
    lambda uri, path: storage.write_versioned(uri, b"", expected=None),
    lambda uri, path: storage.delete(uri),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("status", "message"),
    [("403", "no permission .*role Storage Object User"), ("401", "no Google credentials; run `gcloud auth")],
)
def test_without_permission_the_message_says_what_to_do(
    proxy: FaultProxy, gcs: str, folder: Path, use: Callable[[str, Path], object], status: str, message: str
) -> None:
    proxy.add(status, "", times=10**6)
    with pytest.raises(ConfigError, match=message) as caught:
        use(f"{gcs}/name", folder / "notes.txt")
    assert caught.value.exit_code == 2
    lines = [line for line, _ in proxy.requests]
    assert len(lines) == len(set(lines))  # what is refused is not tried again


@pytest.mark.parametrize("use", USES)
def test_a_missing_bucket_is_named(gcs: str, folder: Path, use: Callable[[str, Path], object]) -> None:
    missing = f"gs://calib-missing-{uuid.uuid4().hex}"
    with pytest.raises(ConfigError, match=f"there is no bucket {missing}; check its name") as caught:
        use(f"{missing}/name", folder / "notes.txt")
    assert caught.value.exit_code == 2


def test_a_missing_object_is_named(gcs: str) -> None:
    with pytest.raises(DataFormatError, match=r"gs://.*/no/model: no such object, and none below"):
        storage.fetch(f"{gcs}/no/model")


def test_an_unreachable_service_is_named(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}")
        give_up_soon(monkeypatch)
        with pytest.raises(ConfigError, match="can't be reached, or does not answer") as caught:
            storage.fetch("gs://bucket/name")
    assert caught.value.exit_code == 2


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(
        ConfigError, match="no Google credentials; run `gcloud auth application-default login`"
    ):
        storage.fetch("gs://bucket/name")


def test_expired_credentials_are_named(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    account = {
        "type": "service_account",
        "client_email": "someone@project.example",
        "private_key_id": "1",
        "private_key": key.private_bytes(*form).decode(),
        "token_uri": f"{proxy.url}/token",
    }
    (tmp_path / "key.json").write_text(json.dumps(account))
    proxy.add("400", "^POST /token", times=10**6)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    remote._client.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"credentials were refused .* renew the service account's key"):
            storage.fetch("gs://bucket/name")
    finally:
        remote._client.cache_clear()
    assert {line for line, _ in proxy.requests} == {"POST /token"}


def test_two_who_publish_one_folder_leave_one_whole_or_none(
    gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    contents = [{f"{i}.bin": bytes([side]) * 2000 for i in range(6)} for side in (1, 2)]
    for side, files in enumerate(contents):
        (tmp_path / str(side)).mkdir()
        for name, data in files.items():
            (tmp_path / str(side) / name).write_bytes(data)

    def publish(side: int) -> bool:
        try:
            storage.publish(tmp_path / str(side), f"{gcs}/model")
        except StaleVersionError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(publish, (0, 1)))
    if any(won):
        published = [files for files, winner in zip(contents, won, strict=True) if winner]
        assert tree(storage.fetch(f"{gcs}/model")) in published
    else:
        with pytest.raises(DataFormatError, match="is being written since"):
            storage.fetch(f"{gcs}/model")

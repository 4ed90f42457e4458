"""Paths and URIs: what is fetched or published is whole, of racing writers one wins, errors help."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stores

from calib_core.errors import ConfigError, DataFormatError, StaleVersionError
from calib_core.storage import uris as storage


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of a folder's files by their paths below it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def make_folder(at: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(data)
    return at


@pytest.fixture(params=["local", "gcs", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place to publish below: a folder, or a bucket."""
    return str(tmp_path / "root") if request.param == "local" else str(request.getfixturevalue(request.param))


FILES = {"a.json": b"{}", "deep/er/b.bin": bytes(range(256)), "deep/empty": b""}


def test_remote_is_what_begins_with_gs() -> None:
    assert storage.is_remote("gs://bucket/name")
    assert storage.is_remote(Path("gs://bucket/name"))  # which Path makes gs:/bucket/name
    assert not any(
        map(storage.is_remote, ("/gcs/bucket/name", "name", "file:///name", "hf://o/n", Path("gs")))
    )


def test_local_paths_are_returned_as_they_are(tmp_path: Path) -> None:
    assert storage.fetch("some/where") == Path("some/where")
    assert storage.fetch(tmp_path) == tmp_path
    assert storage.fetch(f"file://{tmp_path}/a%20b") == tmp_path / "a b"


@pytest.mark.parametrize("uri", ["az://bucket/name", "https://host/name", "hdfs://x/y", "file://host/x"])
def test_other_schemes_are_refused(uri: str, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for use in (
        lambda: storage.fetch(uri),
        lambda: storage.publish(tmp_path / "x", uri),
        lambda: storage.exists(uri),
        lambda: storage.list_files(uri),
        lambda: storage.read_versioned(uri),
        lambda: storage.write_versioned(uri, b"", expected=None),
        lambda: storage.delete(uri),
    ):
        with pytest.raises(
            ConfigError, match="give a local path, or a URI that begins with gs://, s3://, minio://"
        ) as caught:
            use()
        assert caught.value.exit_code == 2


def test_a_file_comes_back_as_it_was_published(root: str, tmp_path: Path) -> None:
    source = tmp_path / "table.bin"
    source.write_bytes(os.urandom(100_000))
    storage.publish(source, f"{root}/deep/table.bin")
    fetched = storage.fetch(f"{root}/deep/table.bin")
    assert fetched.name == "table.bin"
    assert fetched.read_bytes() == source.read_bytes()
    source.write_bytes(b"second")
    storage.publish(source, f"{root}/deep/table.bin")
    assert storage.fetch(f"{root}/deep/table.bin").read_bytes() == b"second"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_comes_back_as_it_was_published(root: str, slash: str, tmp_path: Path) -> None:
    storage.publish(make_folder(tmp_path / "new", FILES), f"{root}/run/model{slash}")
    fetched = storage.fetch(f"{root}/run/model{slash}")
    assert fetched.name == "model"
    assert tree(fetched) == FILES


def test_nothing_of_the_old_folder_is_left_in_the_new(root: str, tmp_path: Path) -> None:
    storage.publish(make_folder(tmp_path / "one", FILES), f"{root}/model")
    storage.publish(make_folder(tmp_path / "two", {"a.json": b"[]", "c": b"c"}), f"{root}/model")
    assert tree(storage.fetch(f"{root}/model")) == {"a.json": b"[]", "c": b"c"}
    assert [Path(f.uri).name for f in storage.list_files(f"{root}/model")] == ["a.json", "c"]


def test_exists_and_delete(root: str, tmp_path: Path) -> None:
    assert not storage.exists(f"{root}/model")
    storage.publish(make_folder(tmp_path / "one", FILES), f"{root}/model")
    assert storage.exists(f"{root}/model")
    assert storage.exists(f"{root}/model/a.json")
    storage.delete(f"{root}/model/a.json")
    assert not storage.exists(f"{root}/model/a.json")
    storage.delete(f"{root}/model")
    storage.delete(f"{root}/model")
    assert not storage.exists(f"{root}/model")
    assert storage.list_files(f"{root}/model") == []


def test_files_are_listed_with_size_and_version(root: str, tmp_path: Path) -> None:
    for name, data in {"b.jsonl": b"12", "day=1/a.jsonl": b"123", ".hidden": b""}.items():
        source = tmp_path / "source"
        source.write_bytes(data)
        storage.publish(source, f"{root}/in/{name}")
    files = storage.list_files(f"{root}/in")
    assert [(f.uri, f.size_bytes) for f in files] == [
        (f"{root}/in/b.jsonl", 2),
        (f"{root}/in/day=1/a.jsonl", 3),
    ]
    assert storage.list_files(f"{root}/in/") == files
    assert storage.fetch(files[1].uri).read_bytes() == b"123"
    source.write_bytes(b"34")
    storage.publish(source, f"{root}/in/b.jsonl")
    after = storage.list_files(f"{root}/in")
    assert after[0].version != files[0].version
    assert after[1] == files[1]


def test_versions_are_compared_before_writing(root: str) -> None:
    uri = f"{root}/state/champion.json"
    assert storage.read_versioned(uri) is None
    with pytest.raises(StaleVersionError, match=r"champion\.json: changed since it was read"):
        storage.write_versioned(uri, b"x", expected="1234")
    assert storage.read_versioned(uri) is None
    first = storage.write_versioned(uri, b"one", expected=None)
    assert storage.read_versioned(uri) == (b"one", first)
    with pytest.raises(StaleVersionError):
        storage.write_versioned(uri, b"two", expected=None)
    second = storage.write_versioned(uri, b"two", expected=first)
    with pytest.raises(StaleVersionError):
        storage.write_versioned(uri, b"three", expected=first)
    assert storage.read_versioned(uri) == (b"two", second)
    assert second != first


def race(uri: str, expected: str | None, contents: list[bytes]) -> list[str | None]:
    """New versions of those who won, None of those who lost."""
    start = threading.Barrier(len(contents))

    def write(data: bytes) -> str | None:
        start.wait()
        try:
            return storage.write_versioned(uri, data, expected=expected)
        except StaleVersionError:
            return None

    with ThreadPoolExecutor(len(contents)) as pool:
        return list(pool.map(write, contents))


def test_of_writers_who_race_exactly_one_wins(root: str) -> None:
    uri, expected = f"{root}/champion.json", None
    for turn in range(5):
        contents = [f"turn {turn}, writer {number}".encode() for number in range(4)]
        outcome = race(uri, expected, contents)
        (winner,) = (number for number, version in enumerate(outcome) if version)
        expected = outcome[winner]
        assert storage.read_versioned(uri) == (contents[winner], expected)


RACER = """
import sys
from calib_core.storage import uris as storage
from calib_core.errors import StaleVersionError
uri, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
try:
    storage.write_versioned(uri, name.encode(), expected=None)
    print("won")
except StaleVersionError:
    print("lost")
"""


def test_of_processes_that_race_exactly_one_wins(root: str) -> None:
    uri = f"{root}/champion.json"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, uri, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    results = {
        racer.communicate(timeout=60)[0].strip(): name
        for racer, name in zip(racers, ("one", "two"), strict=True)
    }
    assert sorted(results) == ["lost", "won"]
    found = storage.read_versioned(uri)
    assert found is not None
    assert found[0].decode() == results["won"]


def test_a_mounted_bucket_is_no_place_to_race_in() -> None:
    with pytest.raises(ConfigError, match=r"write gs://bucket/a/champion\.json"):
        storage.write_versioned("/gcs/bucket/a/champion.json", b"", expected=None)


def test_without_the_client_library_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "calib_core.storage.gcs", raising=False)
    monkeypatch.delattr("calib_core.storage.gcs", raising=False)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(ConfigError, match=r"pip install 'calib-core\[gcs\]'"):
        storage.fetch("gs://bucket/name")


def test_the_client_library_is_not_imported_for_local_paths() -> None:
    code = "import sys; from calib_core.storage import uris; uris.fetch('x'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"google.cloud.storage", "calib_core.storage.gcs"} & set(done.stdout.split())


def test_published_takes_the_work_only_when_it_is_done(root: str) -> None:
    def fail(path: Path) -> None:
        if storage.is_remote(root):
            make_folder(path, FILES)
        raise RuntimeError

    with pytest.raises(RuntimeError), storage.published(f"{root}/out") as path:
        fail(path)
    assert not storage.exists(f"{root}/out")
    with storage.published(f"{root}/out") as path:
        make_folder(path, FILES)
    assert tree(storage.fetch(f"{root}/out")) == FILES


def test_where_nothing_can_be_published_no_work_is_done(bucket: str) -> None:
    for uri in (bucket, f"{bucket}/", f"{bucket[:2]}://calib-no-such-bucket/out"):
        with pytest.raises(ConfigError), storage.published(uri):
            pytest.fail("the work was done")


class TestBuckets:
    """What only buckets have: manifests, versions, the cache."""

    def test_what_has_not_changed_is_downloaded_once(self, bucket: str, tmp_path: Path) -> None:
        storage.publish(make_folder(tmp_path / "new", FILES), f"{bucket}/model")
        first = storage.fetch(f"{bucket}/model")
        stamp = (first / "a.json").stat().st_mtime_ns
        assert storage.fetch(f"{bucket}/model") == first
        assert (first / "a.json").stat().st_mtime_ns == stamp
        storage.publish(make_folder(tmp_path / "new", {"a.json": b"[1]"}), f"{bucket}/model")
        second = storage.fetch(f"{bucket}/model")
        assert second != first
        assert tree(first) == FILES  # whoever reads the old version still has it

    def test_into_puts_it_where_it_is_wanted(self, bucket: str, tmp_path: Path) -> None:
        storage.publish(make_folder(tmp_path / "new", FILES), f"{bucket}/model")
        make_folder(tmp_path / "here/model", {"old": b""})
        assert storage.fetch(f"{bucket}/model", into=tmp_path / "here") == tmp_path / "here/model"
        assert tree(tmp_path / "here") == {f"model/{name}": data for name, data in FILES.items()}
        assert storage.fetch(f"{bucket}/model/a.json", into=tmp_path / "here").read_bytes() == b"{}"

    def test_a_folder_that_others_uploaded_is_taken_as_it_is(self, bucket: str, tmp_path: Path) -> None:
        for name, data in FILES.items():
            source = tmp_path / "source"
            source.write_bytes(data)
            storage.publish(source, f"{bucket}/foreign/{name}")
        assert tree(storage.fetch(f"{bucket}/foreign")) == FILES

    def test_a_folder_half_written_is_refused(
        self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = stores.kind(bucket)
        whole_upload = store.upload

        def fail_below(self: object, name: str, *rest: Any, **options: Any) -> object:
            if "deep" in name:
                raise DataFormatError("stopped half-way")
            return whole_upload(self, name, *rest, **options)

        make_folder(tmp_path / "new", FILES)
        with monkeypatch.context() as patch:
            patch.setattr(store, "upload", fail_below)
            with pytest.raises(DataFormatError, match="stopped half-way"):
                storage.publish(tmp_path / "new", f"{bucket}/model")
        assert storage.exists(f"{bucket}/model/a.json")
        assert not storage.exists(f"{bucket}/model")
        with pytest.raises(DataFormatError, match="is being written since"):
            storage.fetch(f"{bucket}/model")
        storage.publish(tmp_path / "new", f"{bucket}/model")
        assert tree(storage.fetch(f"{bucket}/model")) == FILES

    def test_a_folder_changed_after_it_was_published_is_refused(
        self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from calib_core.storage import objects as part

        monkeypatch.setattr(part, "PAUSE_S", 0.01)
        storage.publish(make_folder(tmp_path / "new", FILES), f"{bucket}/model")
        (tmp_path / "other").write_bytes(b"other")
        storage.publish(tmp_path / "other", f"{bucket}/model/a.json")
        with pytest.raises(DataFormatError, match=r"a\.json is not as it was published \(1 of 3"):
            storage.fetch(f"{bucket}/model")

    def test_nothing_of_an_unfinished_folder_is_left_either(
        self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a failed publication has brought there goes with the next one, if that doesn't have it."""
        store, marks = stores.kind(bucket), list[object]()
        whole_put = store.put

        def put_first(*given: Any, **options: Any) -> object:
            marks.append(given)
            if "manifest" in given[1] and b'"whole"' in given[2]:
                raise DataFormatError("stopped before the last mark")
            return whole_put(*given, **options)

        storage.publish(make_folder(tmp_path / "one", {"a": b"a", "b": b"b"}), f"{bucket}/model")
        make_folder(tmp_path / "two", {"c": b"c"})
        with monkeypatch.context() as patch:
            patch.setattr(store, "put", put_first)
            with pytest.raises(DataFormatError, match="stopped before"):
                storage.publish(tmp_path / "two", f"{bucket}/model")
        names = [Path(file.uri).name for file in storage.list_files(f"{bucket}/model")]
        assert names == ["c"]
        storage.publish(make_folder(tmp_path / "three", {"d": b"d"}), f"{bucket}/model")
        assert [Path(file.uri).name for file in storage.list_files(f"{bucket}/model")] == ["d"]

    def test_a_damaged_manifest_is_named(self, bucket: str, tmp_path: Path) -> None:
        storage.publish(make_folder(tmp_path / "new", FILES), f"{bucket}/model")
        (tmp_path / "bad").write_bytes(b"[]")
        storage.publish(tmp_path / "bad", f"{bucket}/model/.calib-manifest.json")
        with pytest.raises(DataFormatError, match=r"model/\.calib-manifest\.json: not a manifest"):
            storage.fetch(f"{bucket}/model")
        storage.publish(tmp_path / "new", f"{bucket}/model")
        assert tree(storage.fetch(f"{bucket}/model")) == FILES

    @pytest.mark.parametrize("names", [("a", "a/b"), ("a//b",), ("a/../../b",), ("/a",)])
    def test_objects_that_can_not_be_files_are_refused(
        self, bucket: str, names: tuple[str, ...], tmp_path: Path
    ) -> None:
        for name in names:
            stores.put(bucket, f"odd/{name}", b"x")
        with pytest.raises(DataFormatError, match="can't be a file below a folder"):
            storage.fetch(f"{bucket}/odd", into=tmp_path / "here")
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "uri",
    ["gs://", "gs://x", "gs://UPPER/x", "gs:///x", "gs:/bucket/x", "s3:///x", "minio://-a/x", "S3://b/x"],
)
def test_what_is_no_bucket_is_refused(uri: str) -> None:
    scheme = uri.partition(":")[0].lower()
    with pytest.raises(ConfigError, match=f"write {scheme}://bucket/name"):
        storage.fetch(uri)

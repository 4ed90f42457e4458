"""Keys go through as they are: what is written under a URI is the object of that very name, and no other."""

from __future__ import annotations

import string
import unicodedata
import uuid
from pathlib import Path

import pytest
import stores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calib_core.errors import ConfigError, DataFormatError
from calib_core.storage import uris as storage
from calib_core.storage.locations import locate

ODD = (
    "/q",
    "a//b",
    "//",
    "a/",
    "a/../b",
    "./a",
    "..",
    "...",
    "a/.",
    "?x=1",
    "h#1",
    "p%2Fq",
    "p%",
    "%",
    "%00",
)
ODD += (" a ", "a+b", "a b/c d", "a\\b", "~", "*", "[x]", "a&b=c", "a;b", "a:b", "@", "!'()", "é", "e\u0301")
ODD += (
    "日本",
    "Ω",
    "\u2126",
    "ﬁ",
    "\U0001f600",
    "\u200b",
    "\u202e",
    "gs://b/c",
    "s3:",
    "a\tb",
    "\x7f",
    "{}",
    "|^`",
)
PLAIN = st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=8)
WILD = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("/.%#?+&= \\\t"), min_size=1, max_size=30
)
KEYS = (
    (st.sampled_from(ODD) | WILD | st.lists(PLAIN | st.sampled_from(["", ".", ".."])).map("/".join))
    .filter(bool)
    .filter(lambda key: len(key.encode()) <= 900)
)
FEW = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_object(key: str) -> bool:
    """Whether a key can be addressed as one object: with a slash at its end it is a folder's."""
    return not key.endswith("/")


def is_hidden(key: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in key.split("/"))


def check_keys(bucket: str, keys: list[str]) -> None:
    """Write under each key, and find exactly these objects, each with what it was given."""
    folder = uuid.uuid4().hex  # of its own for each example
    for key in keys:
        assert storage.write_versioned(f"{bucket}/{folder}/{key}", key.encode(), expected=None)
    assert stores.keys(bucket) == {f"{folder}/{key}" for key in keys}
    for key in keys:
        found = storage.read_versioned(f"{bucket}/{folder}/{key}")
        assert found is not None
        assert found[0] == key.encode()
    listed = storage.list_files(f"{bucket}/{folder}")
    assert {file.path for file in listed} == {key for key in keys if not is_hidden(key)}
    for file in listed[:3]:
        assert storage.fetch(file.uri).read_bytes() == file.path.encode()
    storage.delete(f"{bucket}/{folder}")
    assert stores.keys(bucket) == set()


@FEW
@given(keys=st.lists(KEYS.filter(is_object), min_size=1, max_size=4, unique=True))
def test_any_key_names_its_own_object(bucket: str, keys: list[str]) -> None:
    check_keys(bucket, keys)


def test_odd_keys_name_their_own_objects(bucket: str) -> None:
    check_keys(bucket, [key for key in ODD if is_object(key)])


def test_forms_of_one_text_are_several_objects(bucket: str) -> None:
    forms = {unicodedata.normalize(form, "ﬁnal é Ω") for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert len(forms) == 4
    check_keys(bucket, sorted(forms))


@pytest.mark.parametrize("key", ["/q.jsonl", "//q.jsonl", "a/../q.jsonl", "./q.jsonl", "a/q.jsonl?x#y"])
def test_no_other_object_is_read_in_place_of_a_missing_one(bucket: str, key: str) -> None:
    stores.put(bucket, "q.jsonl", b"another")
    stores.put(bucket, "a/q.jsonl", b"another")
    assert not storage.exists(f"{bucket}/{key}")
    assert storage.read_versioned(f"{bucket}/{key}") is None
    with pytest.raises(DataFormatError, match="no such object"):
        storage.fetch(f"{bucket}/{key}")


def test_a_reader_reads_the_key_that_it_is_given(bucket: str) -> None:
    from calib_core.data.questions import read_questions

    row = '{"question": "%s?", "choices": ["a", "b"], "answer": 0}'
    stores.put(bucket, "q.jsonl", (row % "wrong").encode())
    for key in ("/q.jsonl", "a//../q?#%2F.jsonl"):
        stores.put(bucket, key, (row % "right").encode())
        questions, report = read_questions(f"{bucket}/{key}")
        assert [question.question for question in questions] == ["right?"]
        assert report.source == f"{bucket}/{key}"


@pytest.mark.parametrize("key", ["..", "a/..", "a/.", "x" * 400 + ".jsonl", "%"])
def test_keys_that_are_no_file_names_are_published_and_fetched(bucket: str, key: str, tmp_path: Path) -> None:
    if bucket.startswith("gs:") and key == "..":
        pytest.skip("Google Cloud Storage has no such name")
    with storage.published(f"{bucket}/{key}") as path:
        path.write_bytes(b"x")
    assert stores.keys(bucket) == {key}
    fetched = storage.fetch(f"{bucket}/{key}", into=tmp_path / "here")
    assert fetched.parent == tmp_path / "here"
    assert fetched.read_bytes() == b"x"
    assert fetched.suffix == Path(key).suffix


@pytest.mark.parametrize("key", ["/run", "a//run", "run/", "run//", "a/../run"])
def test_folders_lie_where_their_uri_says(bucket: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "new/deep").mkdir(parents=True)
    (tmp_path / "new/deep/a.txt").write_bytes(b"a")
    storage.publish(tmp_path / "new", f"{bucket}/{key}")
    folder = key.removesuffix("/")
    assert stores.keys(bucket) == {f"{folder}/deep/a.txt", f"{folder}/.calib-manifest.json"}
    assert (storage.fetch(f"{bucket}/{key}") / "deep/a.txt").read_bytes() == b"a"
    assert storage.join(f"{bucket}/{key}", "deep/a.txt") == f"{bucket}/{folder}/deep/a.txt"
    assert storage.exists(f"{bucket}/{folder}/deep/a.txt")


@given(key=st.text(st.characters(exclude_categories=["Cs"])), name=PLAIN)
def test_joining_adds_a_name_and_changes_nothing(key: str, name: str) -> None:
    joined = storage.join(f"s3://bucket/{key}", name)
    location = locate(joined)
    assert location is not None
    assert location.key in (f"{key}{name}", f"{key}/{name}")
    assert location.uri == joined


@pytest.mark.parametrize("uri", ["gs://bucket//q.jsonl", "s3://bucket/./q", "minio://b-1/a/"])
def test_a_path_is_no_uri(uri: str) -> None:
    """Path makes one slash of two and drops dots: what it names then is another object."""
    assert storage.is_remote(Path(uri))
    for use in (storage.fetch, storage.exists, storage.list_files, storage.delete, storage.read_versioned):
        with pytest.raises(ConfigError, match=r"a URI in a Path, .* give the URI as text"):
            use(Path(uri))


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ConfigError, match="lone surrogate"):
        storage.fetch("s3://bucket/a\ud800")


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "a%2Fb", "a%b", "é"])
def test_file_uris_lose_nothing(name: str, tmp_path: Path) -> None:
    from urllib.parse import quote

    (tmp_path / name).write_bytes(b"x")
    assert storage.fetch(f"file://{quote(str(tmp_path / name))}").read_bytes() == b"x"
    if "%" not in name:
        assert storage.fetch(f"file://{tmp_path / name}").read_bytes() == b"x"


@pytest.mark.parametrize(
    "key", ["a//q.jsonl", "/q.jsonl", "a/./q", "a/../q", "a/", "a%2Fq", "a#b?c", "cafe\u0301"]
)
def test_a_mounted_path_as_text_names_the_key_that_it_spells(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(storage, "_open", lambda location: None)
    monkeypatch.setattr(storage.objects, "fetch", lambda bucket, location, into: asked.append(location.uri))
    for mount, scheme in (("gcs", "gs"), ("s3", "s3"), ("minio", "minio")):
        assert storage.as_uri(f"/{mount}/some-bucket/{key}") == f"{scheme}://some-bucket/{key}"
        storage.fetch(f"/{mount}/some-bucket/{key}")
        assert asked.pop() == f"{scheme}://some-bucket/{key}"

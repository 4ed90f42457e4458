"""What only S3 has: servers of many kinds, ETags of many kinds, uploads in parts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import stores
from fault_proxy import FaultProxy, fault_proxy

from calib_core.errors import ConfigError, DataFormatError
from calib_core.storage import bucket as limits
from calib_core.storage import uris as storage
from calib_core.storage.s3_requests import WRITER

SLICE = 64 * 1024
BIG = os.urandom(3 * SLICE + 5)


@pytest.fixture
def proxy(s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server; slices are small, pauses short."""
    monkeypatch.setattr(limits, "SLICE_BYTES", SLICE)
    monkeypatch.setattr(limits, "FIRST_PAUSE_S", 0.01)
    with fault_proxy(s3_server) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


def client() -> Any:
    return boto3.client("s3", region_name="us-east-1")


def in_parts(bucket: str, key: str, data: bytes, part_bytes: int) -> None:
    """Upload as others do: in parts of their own size, without our metadata."""
    upload = client().create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(data), part_bytes), start=1):
        body = data[start : start + part_bytes]
        answer = client().upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    client().complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
    )


@pytest.mark.parametrize("scheme", ["s3", "minio"])
def test_both_schemes_name_the_same_objects(s3: str, scheme: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    storage.publish(tmp_path / "a", f"{s3}/deep/a")
    uri = f"{scheme}{s3[2:]}/deep/a"
    assert storage.fetch(uri).read_bytes() == b"a"
    assert [file.uri for file in storage.list_files(f"{scheme}{s3[2:]}/deep")] == [uri]


@pytest.mark.parametrize("expected", [None, "read"])
def test_a_server_that_honours_no_conditions_keeps_no_champion(
    proxy: FaultProxy, s3: str, expected: str | None
) -> None:
    if expected:
        stores.put(s3, "champion.json", b"{}")
        expected = storage.read_versioned(f"{s3}/champion.json")[1]
    proxy.add("unconditional", "^PUT ", times=10**6)
    with pytest.raises(ConfigError, match=r"champion\.json: this S3 server writes even if a condition"):
        storage.write_versioned(f"{s3}/champion.json", b"[]", expected=expected)


def test_a_server_is_asked_once_whether_it_honours_conditions(proxy: FaultProxy, s3: str) -> None:
    first = storage.write_versioned(f"{s3}/a", b"1", expected=None)
    proxy.requests.clear()
    storage.write_versioned(f"{s3}/a", b"2", expected=first)
    assert [line.partition(" ")[0] for line, _ in proxy.requests] == ["PUT"]


@pytest.mark.parametrize("pattern", [r"^PUT .*/big\?.*partNumber=2", "^PUT .*/small$"])
def test_what_is_damaged_on_its_way_up_is_sent_again(
    proxy: FaultProxy, s3: str, pattern: str, tmp_path: Path
) -> None:
    fault = proxy.add("spoilt", pattern, times=2)
    for name, data in {"big": BIG, "small": b"small"}.items():
        (tmp_path / name).write_bytes(data)
        storage.publish(tmp_path / name, f"{s3}/{name}")
        assert storage.fetch(f"{s3}/{name}").read_bytes() == data
    assert fault.seen == 2


@pytest.mark.parametrize("part_bytes", [SLICE, SLICE + 777, 10 * SLICE])
def test_objects_of_others_are_held_to_their_etag(
    proxy: FaultProxy, s3: str, part_bytes: int, tmp_path: Path
) -> None:
    bucket = s3.removeprefix("s3://")
    in_parts(bucket, "parts", BIG, part_bytes)
    stores.put(s3, "plain", BIG)
    for name in ("parts", "plain"):
        fault = proxy.add("flipped", rf"^GET .*/{name}$")
        assert storage.fetch(f"{s3}/{name}").read_bytes() == BIG
        assert fault.seen == 1
        proxy.add("flipped", rf"^GET .*/{name}$", times=10**6)
        with pytest.raises(DataFormatError, match=rf"/{name}: arrived damaged 3 times"):
            storage.fetch(f"{s3}/{name}", into=tmp_path)
        proxy.faults.clear()


def test_an_etag_that_is_no_checksum_damns_nothing(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys of the service (SSE-KMS) an ETag is no MD5; moto gives the MD5 all the same."""
    from calib_core.storage import s3_download

    client().put_object(Bucket=s3[5:], Key="a", Body=b"a", ServerSideEncryption="aws:kms")
    monkeypatch.setattr(s3_download, "md5", lambda data=b"": hashlib.sha256(data[:0]))
    assert storage.fetch(f"{s3}/a").read_bytes() == b"a"
    assert storage.read_versioned(f"{s3}/a")[0] == b"a"


def test_a_published_folder_costs_one_request_for_each_small_object(
    proxy: FaultProxy, s3: str, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    for number in range(20):
        (tmp_path / f"new/{number}").write_bytes(b"%d" % number)
    storage.publish(tmp_path / "new", f"{s3}/new")
    proxy.requests.clear()
    storage.fetch(f"{s3}/new")
    assert len(proxy.requests) == 20 + 3  # is it an object? what is in it? the manifest
    proxy.requests.clear()
    storage.publish(tmp_path / "new", f"{s3}/new")
    assert [line for line, _ in proxy.requests if line.startswith("PUT")] == [
        line for line, _ in proxy.requests if line.startswith("PUT") and "manifest" in line
    ]


def test_an_upload_that_another_has_ended_counts_as_done(proxy: FaultProxy, s3: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(BIG)
    proxy.add("lost", "^POST .*uploadId=")
    storage.publish(tmp_path / "big", f"{s3}/big")
    assert storage.fetch(f"{s3}/big").read_bytes() == BIG
    assert stores.keys(s3) == {"big"}


def test_deleting_a_folder_gives_up_what_was_never_ended(
    proxy: FaultProxy, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOVING_RETRY_S", 0.05)
    monkeypatch.setattr(limits, "RETRY_S", 0.05)
    (tmp_path / "big").write_bytes(BIG)
    fault = proxy.add("503", "^POST .*uploadId=", times=10**6)
    with pytest.raises(ConfigError, match=r"the S3 server http://127.* can't be reached"):
        storage.publish(tmp_path / "big", f"{s3}/run/big")
    fault.times = 0
    assert client().list_multipart_uploads(Bucket=s3[5:])["Uploads"]
    storage.delete(f"{s3}/run")
    assert "Uploads" not in client().list_multipart_uploads(Bucket=s3[5:])
    assert stores.keys(s3) == set()


def test_what_is_written_says_what_it_is(s3: str) -> None:
    storage.write_versioned(f"{s3}/a", b"123456789", expected=None)
    metadata = client().head_object(Bucket=s3[5:], Key="a")["Metadata"]
    assert metadata["calib-crc32c"] == "4waSgw=="
    assert len(metadata[WRITER]) == 32

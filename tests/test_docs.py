"""The steps that the documentation gives a new user, followed as they are written, against stand-ins."""

from __future__ import annotations

import json
import os
import shlex
import string
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.aiplatform")

import grpc
import kfp_standin
import vertex_standin
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud.aiplatform_v1.services.pipeline_service.transports import PipelineServiceGrpcTransport
from google.cloud.aiplatform_v1.services.schedule_service.transports import ScheduleServiceGrpcTransport

from calib_core.models.budget import QUESTION_TOKENS
from calib_pipelines.commands import main as cli
from calib_pipelines.commands import submit
from calib_pipelines.definitions.platforms import Settings

ROOT = Path(__file__).parents[1]
PUSHED = "registry.example/team"


def commands(document: str, heading: str) -> list[str]:
    """The `calib pipeline` commands of one section, in order, each on one line."""
    section = (ROOT / document).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in section.replace("\\\n", " ").splitlines()]
    return [
        line for line in lines if line.startswith(("calib pipeline", "CALIB_IMAGE=")) and "..." not in line
    ]


def follow(document: str, heading: str) -> list[str]:
    """Run them in the current folder; each has to end with code 0. What was run comes back."""
    done = []
    for line in commands(document, heading):
        words = shlex.split(string.Template(line).substitute(os.environ))
        settings = [word for word in words if word.startswith("CALIB_IMAGE=")]
        words = words[words.index("calib") + 1 :]
        if words[:2] == ["pipeline", "compile"]:  # an image is named before the components are imported
            environment = {**os.environ, **dict(setting.split("=", 1) for setting in settings)}
            code = subprocess.run(
                [sys.executable, "-m", "calib_pipelines.commands.main", *words], env=environment, check=False
            ).returncode
        else:
            code = cli.main(words)
        assert code == 0, line
        done.append(" ".join(words[:3]))
    return done


@pytest.fixture
def kubeflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    with kfp_standin.serving(kfp_standin.KfpServer()) as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        yield server


@pytest.fixture
def vertex(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    monkeypatch.setenv("REPOSITORY", PUSHED)
    with vertex_standin.serving(vertex_standin.VertexServer()) as server:
        server.buckets = {"my-bucket": 200}
        for transport in (PipelineServiceGrpcTransport, ScheduleServiceGrpcTransport):
            monkeypatch.setattr(
                transport, "create_channel", lambda host, **options: grpc.insecure_channel(server.address)
            )
        private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        key = tmp_path / "key.json"
        key.write_text(json.dumps(vertex_standin.service_account_key(server, private_key)))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.http)
        yield server


def fitting_tokens() -> int:
    """Tokens in a pass that the hardware of the documented commands holds."""
    settings = Settings(model_parameters="8B", accelerator="nvidia-a100-80gb")
    return settings.questions_per_step("lora", settings.accelerator) * QUESTION_TOKENS


ALL_STEPS = [
    "pipeline compile --target",
    "pipeline submit --target",
    *(f"pipeline schedule {action}" for action in ("create", "list", "pause", "resume", "delete")),
]


@pytest.mark.slow
def test_steps_for_kubeflow(kubeflow):
    assert follow("docs/kubeflow.md", "Steps") == ALL_STEPS
    (run,) = kubeflow.stores["runs"].values()
    assert run["runtime_config"]["parameters"] == {
        "model": "gs://my-bucket/models/m",
        "questions": "gs://my-bucket/questions.jsonl",
        "pass_tokens": fitting_tokens(),
    }
    assert not kubeflow.stores["recurringruns"]
    assert f"image: {PUSHED}/calib:" in Path("restore.yaml").read_text()


@pytest.mark.slow
def test_steps_for_vertex(vertex):
    assert follow("docs/vertex.md", "Steps") == ALL_STEPS
    (job,) = vertex.jobs.values()
    assert job.name.endswith("/pipelineJobs/first-try")
    assert job.runtime_config.gcs_output_directory == "gs://my-bucket/calib"
    assert not vertex.schedules
    assert f"{PUSHED}/calib:" in Path("restore.yaml").read_text()
    assert job.runtime_config.parameter_values["pass_tokens"] == fitting_tokens()


@pytest.mark.slow
def test_steps_of_the_readme(kubeflow, capsys):
    assert follow("README.md", "Three ways to use it") == [
        "pipeline submit --target",
        "pipeline schedule create",
    ]
    told = capsys.readouterr().err
    assert told.count("compiled ") == 2
    assert "mind:" not in told  # what the commands ask for is what their hardware holds
    (schedule,) = kubeflow.stores["recurringruns"].values()
    assert schedule["runtime_config"]["parameters"]["champion"] == "gs://bucket/champion"

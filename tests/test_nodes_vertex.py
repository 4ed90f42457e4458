"""Vertex custom jobs: Google's own client speaks gRPC to a stand-in for the job service on 127.0.0.1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("google.cloud.aiplatform")

import grpc
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform_v1 import types
from google.cloud.aiplatform_v1.services.job_service.transports import JobServiceGrpcTransport
from google.protobuf.empty_pb2 import Empty

from calib_components import watching
from calib_components.image import IMAGE
from calib_components.nodes import vertex as nodes_vertex
from calib_components.nodes.job import JobConfig, Place
from calib_components.nodes.nodes import finetune
from calib_core.errors import CalibError, ConfigError

SETTINGS = {
    "platform": "vertex",
    "project": "p",
    "region": "europe-west4",
    "staging_bucket": "gs://b",
    "machine_type": "a2-highgpu-4g",
    "timeout_s": 30,
}
CONFIG = JobConfig(nodes=3, processes=4, batch_size=24, cluster=json.dumps(SETTINGS))
PLACES = {name: Place(path=f"/gcs/b/{name}", uri=f"gs://b/{name}") for name in ("data", "adapter")}
PLACES["model"] = Place(path="owner/name", uri="owner/name")
State = types.JobState


class JobService:
    """Jobs by name, the states that a job goes through, and errors in place of answers."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.states = [State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING, State.JOB_STATE_SUCCEEDED]
        self.faults: dict[str, list[grpc.StatusCode]] = {}
        self.created: list[Any] = []
        self.cancelled: list[str] = []
        self.filters: list[str] = []

    def CreateCustomJob(self, request: Any) -> Any:  # noqa: N802
        name = f"{request.parent}/customJobs/{len(self.created) + 1}"
        job = types.CustomJob(request.custom_job)
        job.name, job.state = name, self.states[0]
        self.jobs[name] = job
        self.created.append(job)
        return job

    def GetCustomJob(self, request: Any) -> Any:  # noqa: N802
        job = self.jobs[request.name]
        if job.state in self.states[:-1]:
            job.state = self.states[self.states.index(job.state) + 1]
        if job.state == State.JOB_STATE_FAILED:
            job.error = {"code": 8, "message": "no A100 to be had"}
        return job

    def ListCustomJobs(self, request: Any) -> Any:  # noqa: N802
        self.filters.append(request.filter)
        going = (State.JOB_STATE_PENDING, State.JOB_STATE_RUNNING)
        jobs = [
            job
            for job in self.jobs.values()
            if job.state in going and f'labels.calib_run="{job.labels["calib_run"]}"' in request.filter
        ]
        return types.ListCustomJobsResponse(custom_jobs=jobs)

    def CancelCustomJob(self, request: Any) -> Any:  # noqa: N802
        self.cancelled.append(request.name)
        return Empty()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods as gRPC knows them; a request is parsed by Google's own types."""

        def method(name: str) -> grpc.RpcMethodHandler:
            def serve(raw: bytes, context: grpc.ServicerContext) -> bytes:
                if self.faults.get(name):
                    context.abort(self.faults[name].pop(0), "refused for a test")
                answer = getattr(self, name)(getattr(types, f"{name}Request").deserialize(raw))
                return (
                    answer.SerializeToString()
                    if isinstance(answer, Empty)
                    else type(answer).serialize(answer)
                )

            return grpc.unary_unary_rpc_method_handler(serve)

        names = ("CreateCustomJob", "GetCustomJob", "ListCustomJobs", "CancelCustomJob")
        return grpc.method_handlers_generic_handler(
            "google.cloud.aiplatform.v1.JobService", {name: method(name) for name in names}
        )


@pytest.fixture
def vertex(monkeypatch) -> Iterator[JobService]:
    service = JobService()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[service.handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    asked: list[str] = []

    def channel(host: str, **_: Any) -> grpc.Channel:
        asked.append(host)
        return grpc.insecure_channel(f"127.0.0.1:{port}")

    monkeypatch.setattr(JobServiceGrpcTransport, "create_channel", staticmethod(channel))
    monkeypatch.setattr(nodes_vertex.run_job, "__kwdefaults__", {"poll_s": 0.02})
    aiplatform.init(project="p", api_transport="grpc", credentials=AnonymousCredentials())
    yield service
    server.stop(None)
    assert set(asked) <= {"europe-west4-aiplatform.googleapis.com:443"}


def train(config: JobConfig = CONFIG, **places: Place) -> None:
    finetune("rcft", config, **{**PLACES, **places})


def test_a_job_has_a_leader_and_replicas_that_run_one_command(vertex, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CALIB_CHECKPOINTS", "output")
    train()
    (job,) = vertex.created
    first, others = job.job_spec.worker_pool_specs
    assert (first.replica_count, others.replica_count) == (1, 2)
    assert first.machine_spec == others.machine_spec
    assert first.machine_spec.machine_type == "a2-highgpu-4g"
    assert first.machine_spec.accelerator_type == types.AcceleratorType.NVIDIA_TESLA_A100
    assert first.machine_spec.accelerator_count == 4
    assert first.container_spec == others.container_spec
    assert first.container_spec.image_uri == IMAGE
    assert list(first.container_spec.command) == ["python", "-m", "calib_components.nodes.replica"]
    assert ("CALIB_CHECKPOINTS", "output") in [(v.name, v.value) for v in first.container_spec.env]
    processes, *arguments = first.container_spec.args
    assert (processes, arguments[0]) == ("4", "rcft")
    assert {"--model=owner/name", "--data=/gcs/b/data", "--out=/gcs/b/adapter"} <= set(arguments)
    assert job.job_spec.scheduling.timeout.seconds == 30
    assert vertex.cancelled == []
    assert "succeeded" in capsys.readouterr().err


def test_a_failed_job_is_told_with_vertex_s_own_reason(vertex) -> None:
    vertex.states = [State.JOB_STATE_PENDING, State.JOB_STATE_FAILED]
    with pytest.raises(CalibError, match=r"customJobs/1 ended as failed: no A100 to be had; its logs"):
        train()


def test_a_job_that_a_try_before_has_made_is_not_started_twice(vertex) -> None:
    vertex.states = [State.JOB_STATE_RUNNING]
    with pytest.raises(CalibError, match="not ended in time"):
        train(replace(CONFIG, cluster=json.dumps({**SETTINGS, "timeout_s": 1})))
    assert vertex.cancelled == [vertex.created[0].name]  # given up, and not left running
    vertex.jobs[vertex.created[0].name].state = State.JOB_STATE_RUNNING  # had its maker been killed instead
    vertex.states = [State.JOB_STATE_RUNNING, State.JOB_STATE_SUCCEEDED]
    train()
    assert len(vertex.created) == 1


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, ConfigError, "no permission for .*roles/aiplatform.user"),
        (grpc.StatusCode.UNAUTHENTICATED, ConfigError, "Vertex refuses the job"),
        (grpc.StatusCode.INVALID_ARGUMENT, ConfigError, r"Vertex refuses the job .*correct cluster"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ConfigError, "Vertex refuses the job"),
        (grpc.StatusCode.INTERNAL, CalibError, "Vertex did not answer .*is found"),
    ],
)
def test_what_vertex_refuses_is_told_with_what_to_do(vertex, code, kind, message) -> None:
    vertex.faults["CreateCustomJob"] = [code] * 5
    with pytest.raises(kind, match=message) as caught:
        train()
    assert caught.type is kind
    assert vertex.created == []


def test_a_region_that_does_not_exist_is_refused(vertex) -> None:
    with pytest.raises(ConfigError, match="atlantis"):
        train(replace(CONFIG, cluster=json.dumps({**SETTINGS, "region": "atlantis"})))


def test_places_outside_of_buckets_are_refused(vertex, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"data is .*must lie in a bucket \(gs://\)"):
        train(data=Place(path=str(tmp_path), uri=str(tmp_path)))
    assert vertex.created == []


def test_an_interruption_cancels_the_job(vertex, monkeypatch) -> None:
    vertex.states = [State.JOB_STATE_RUNNING]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert vertex.cancelled == [vertex.created[0].name]

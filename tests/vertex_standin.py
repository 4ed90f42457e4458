"""A stand-in for Vertex AI's pipeline and schedule services on loopback: gRPC, the library's own messages.

Beside it, on HTTP: Google's token service, and as much of Cloud Storage as says whether a bucket is there.
The service's source isn't public: refused here is what its API's reference says is refused (`Schedule`,
`UpdateScheduleRequest`, `PipelineJob`), and what a pipeline's own schema rules out.

What differs from the real service, as far as is known:

* Texts of refusals are made up; their codes are gRPC's for such cases.
* Jobs don't run: their states, and those of their tasks, are what `plan` and `tasks` say.
* Parameters are held to their types as Kubeflow's server does it, since Vertex's way isn't known.
* Of filters there is equality of display names. Schedules start no jobs, and dates are not reckoned.
* There are no quotas, permissions, networks, encryption keys or persistent resources.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud import aiplatform_v1 as v1
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, empty_pb2, json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_rules import InvalidInputError, check_inputs
from loopback import Handler, http_server, loopback

State = v1.PipelineState
Fault = Callable[[str, Any, Callable[[], Any]], tuple[grpc.StatusCode, str] | None]
METHODS: dict[str, dict[str, tuple[type, Any]]] = {
    "PipelineService": {
        "CreatePipelineJob": (v1.CreatePipelineJobRequest, v1.PipelineJob),
        "GetPipelineJob": (v1.GetPipelineJobRequest, v1.PipelineJob),
    },
    "ScheduleService": {
        "CreateSchedule": (v1.CreateScheduleRequest, v1.Schedule),
        "ListSchedules": (v1.ListSchedulesRequest, v1.ListSchedulesResponse),
        "UpdateSchedule": (v1.UpdateScheduleRequest, v1.Schedule),
        "PauseSchedule": (v1.PauseScheduleRequest, None),
        "ResumeSchedule": (v1.ResumeScheduleRequest, None),
        "DeleteSchedule": (v1.DeleteScheduleRequest, operations_pb2.Operation),
    },
}


OUTPUT_ONLY = {
    *("started_run_count", "state", "create_time", "update_time", "next_run_time", "last_pause_time"),
    *("last_resume_time", "catch_up", "last_scheduled_run_response"),
}
"""Fields of a schedule that the service sets, and ignores in requests."""


class RefusalError(Exception):
    """What the service answers in place of a result."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class VertexServer:
    """The services' state, faults to inject, and all requests that they got.

    Attributes:
        calls: Name of the method and request, in their order.
        metadata: Of the last call.
        faults: Functions of method, request and of what would answer; the first that returns a refusal wins.
        plan: States that a job goes through, one at each look; the last one stays.
        buckets: HTTP status for a look at each bucket; 404 for all others.
        token_status: HTTP status of the token service.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.metadata: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.plan = [
            State.PIPELINE_STATE_PENDING,
            State.PIPELINE_STATE_RUNNING,
            State.PIPELINE_STATE_SUCCEEDED,
        ]
        self.tasks: dict[str, Any] = {}
        self.buckets = {"bucket": 200}
        self.token_status = 200
        self.jobs: dict[str, v1.PipelineJob] = {}
        self.schedules: dict[str, v1.Schedule] = {}
        self.address = self.http = ""
        self._ids = itertools.count(7001)
        self._looks: dict[str, int] = {}
        self._lock = threading.RLock()

    def made(self, method: str) -> list[Any]:
        """Requests of a method."""
        return [request for name, request in self.calls if name == method]

    def answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append((method, request))
        self.metadata = {key: str(value) for key, value in context.invocation_metadata()}

        def usual() -> Any:
            with self._lock:
                return getattr(self, re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower())(request)

        try:
            for fault_ in self.faults:
                if (refusal := fault_(method, request, usual)) is not None:
                    raise RefusalError(*refusal)
            return usual()
        except RefusalError as error:
            context.abort(error.code, error.text)

    def create_pipeline_job(self, request: v1.CreatePipelineJobRequest) -> v1.PipelineJob:
        job, job_id = v1.PipelineJob(request.pipeline_job), request.pipeline_job_id
        name = f"{request.parent}/pipelineJobs/{job_id}"
        if not re.fullmatch(r"[a-z][-a-z0-9]{0,127}", job_id):
            raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, f"invalid id {job_id}")
        check_job(job)
        if name in self.jobs:
            raise RefusalError(grpc.StatusCode.ALREADY_EXISTS, f"{name} already exists")
        job.name, job.state = name, self.plan[0]
        self.jobs[name] = job
        return job

    def get_pipeline_job(self, request: v1.GetPipelineJobRequest) -> v1.PipelineJob:
        job = self.jobs.get(request.name)
        if job is None:
            raise RefusalError(grpc.StatusCode.NOT_FOUND, f"{request.name} not found")
        look = self._looks[request.name] = self._looks.get(request.name, 0) + 1
        job.state = self.plan[min(look, len(self.plan) - 1)]
        job.job_detail = v1.PipelineJobDetail(
            task_details=[
                v1.PipelineTaskDetail(task_name=name, state=state) for name, state in self.tasks.items()
            ]
        )
        if job.state == State.PIPELINE_STATE_FAILED:
            job.error = {"code": 9, "message": "task evaluate failed"}
        return job

    def create_schedule(self, request: v1.CreateScheduleRequest) -> v1.Schedule:
        schedule = v1.Schedule(request.schedule)
        check_schedule(schedule)
        schedule.name = f"{request.parent}/schedules/{next(self._ids)}"
        schedule.state = v1.Schedule.State.ACTIVE
        self.schedules[schedule.name] = schedule
        return schedule

    def list_schedules(self, request: v1.ListSchedulesRequest) -> v1.ListSchedulesResponse:
        match = re.fullmatch(r'display_name="([^"]*)"', request.filter)
        found = [one for one in self.schedules.values() if one.name.startswith(request.parent + "/")]
        if request.filter:
            assert match, request.filter
            found = [one for one in found if one.display_name == match.group(1)]
        first = int(request.page_token or 0)
        more = str(first + 2) if first + 2 < len(found) else ""  # small pages, so that clients must read on
        return v1.ListSchedulesResponse(schedules=found[first : first + 2], next_page_token=more)

    def update_schedule(self, request: v1.UpdateScheduleRequest) -> v1.Schedule:
        """Change what the mask names and nothing else; see the reference of `UpdateScheduleRequest`."""
        stored = self._schedule(request.schedule.name)
        if not request.update_mask.paths:
            raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "update_mask is required")
        changed = v1.Schedule(stored)
        for path in request.update_mask.paths:
            if path not in v1.Schedule.meta.fields or path == "name":
                raise RefusalError(
                    grpc.StatusCode.INVALID_ARGUMENT, f"update_mask: no field {path} to change"
                )
            if path in OUTPUT_ONLY:
                continue
            if path in stored and path not in request.schedule:
                raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, f"{path} can't be unset")
            setattr(changed, path, getattr(request.schedule, path))
        check_schedule(changed)
        self.schedules[stored.name] = changed
        return changed

    def pause_schedule(self, request: v1.PauseScheduleRequest) -> empty_pb2.Empty:
        return self._switch(request.name, v1.Schedule.State.ACTIVE, v1.Schedule.State.PAUSED)

    def resume_schedule(self, request: v1.ResumeScheduleRequest) -> empty_pb2.Empty:
        assert not request.catch_up
        return self._switch(request.name, v1.Schedule.State.PAUSED, v1.Schedule.State.ACTIVE)

    def delete_schedule(self, request: v1.DeleteScheduleRequest) -> operations_pb2.Operation:
        self._schedule(request.name)
        del self.schedules[request.name]
        response = any_pb2.Any()
        response.Pack(empty_pb2.Empty())
        return operations_pb2.Operation(name=f"{request.name}/operations/1", done=True, response=response)

    def _schedule(self, name: str) -> v1.Schedule:
        if name not in self.schedules:
            raise RefusalError(grpc.StatusCode.NOT_FOUND, f"{name} not found")
        return self.schedules[name]

    def _switch(self, name: str, before: Any, after: Any) -> empty_pb2.Empty:
        schedule = self._schedule(name)
        if schedule.state != before:
            raise RefusalError(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is {schedule.state.name}")
        schedule.state = after
        return empty_pb2.Empty()


def check_job(job: v1.PipelineJob) -> None:
    """Refuse what Vertex would refuse in a job."""
    spec = json_format.MessageToDict(v1.PipelineJob.pb(job).pipeline_spec)
    given = json_format.MessageToDict(v1.PipelineJob.pb(job).runtime_config).get("parameterValues", {})
    try:
        check_spec(spec)
        check_inputs(spec, given)
    except (InvalidInputError, json_format.ParseError) as error:
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, f"invalid pipeline job: {error}") from None
    if not re.fullmatch(r"gs://[^/]+(/.*)?", job.runtime_config.gcs_output_directory):
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "gcs_output_directory must be in a bucket")
    if job.service_account and not re.fullmatch(
        r"[^@\s]+@[^@\s]+\.gserviceaccount\.com", job.service_account
    ):
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, f"no service account: {job.service_account}")
    if not all(re.fullmatch(r"[-_a-z0-9]{0,63}", text) for pair in job.labels.items() for text in pair):
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "invalid labels")


def check_spec(spec: dict[str, Any]) -> None:
    """Refuse a pipeline that its own schema rules out, or that refers to what isn't there."""
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    if spec.get("schemaVersion") != "2.1.0" or not spec.get("pipelineInfo", {}).get("name"):
        raise InvalidInputError("schemaVersion must be 2.1.0, and pipelineInfo.name given")
    components, executors = spec.get("components", {}), spec["deploymentSpec"].get("executors", {})
    for name, component in {"root": spec["root"], **components}.items():
        if "dag" not in component:
            executor = executors.get(component.get("executorLabel"), {})
            if not executor.get("container", {}).get("image") and "importer" not in executor:
                raise InvalidInputError(f"{name} has no executor that can be run")
            continue
        tasks = component["dag"]["tasks"]
        for key, task in tasks.items():
            if task["componentRef"]["name"] not in components:
                raise InvalidInputError(f"{name}: task {key} has no component")
            if missing := set(task.get("dependentTasks", [])) - tasks.keys():
                raise InvalidInputError(f"{name}: task {key} waits for {missing}")


def check_schedule(schedule: v1.Schedule) -> None:
    """Refuse what Vertex would refuse in a schedule."""
    if not 1 <= len(schedule.display_name) <= 128:
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "display_name must have 1 to 128 characters")
    if not re.fullmatch(r"projects/[^/]+/locations/[^/]+", schedule.create_pipeline_job_request.parent):
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "create_pipeline_job_request.parent is required")
    check_job(schedule.create_pipeline_job_request.pipeline_job)
    if len(schedule.cron.split()) != (6 if schedule.cron.startswith("TZ=") else 5):
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, f"invalid cron {schedule.cron}")
    if schedule.max_concurrent_run_count < 1:
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "max_concurrent_run_count must be positive")


def fault(method: str, code: grpc.StatusCode, text: str, *, times: int = 1, after: bool = False) -> Fault:
    """A fault for the first `times` calls of a method: a refusal in place of an answer, or `after` it."""
    left = itertools.count()

    def inject(called: str, request: Any, usual: Callable[[], Any]) -> tuple[grpc.StatusCode, str] | None:
        if called != method or next(left) >= times:
            return None
        if after:
            usual()
        return code, text

    return inject


@contextlib.contextmanager
def serving(
    server: VertexServer, credentials: grpc.ServerCredentials | None = None
) -> Iterator[VertexServer]:
    """Serve on free ports of 127.0.0.1 until the block ends; gRPC with TLS where credentials are given."""
    grpc_server = grpc.server(ThreadPoolExecutor(4))
    for service, methods in METHODS.items():
        grpc_server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    f"google.cloud.aiplatform.v1.{service}",
                    {name: _handler(server, name, *types) for name, types in methods.items()},
                ),
            )
        )
    if credentials is None:
        port = grpc_server.add_insecure_port("127.0.0.1:0")
    else:
        port = grpc_server.add_secure_port("127.0.0.1:0", credentials)
    with loopback(http_server(_http_handler(server))) as http:
        grpc_server.start()
        server.address = f"127.0.0.1:{port}"
        server.http = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            grpc_server.stop(None).wait()


def service_account_key(server: VertexServer, key: rsa.RSAPrivateKey) -> dict[str, str]:
    """A service account's key file, whose tokens come from the stand-in."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "project_id": "my-project",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "me@my-project.iam.gserviceaccount.com",
        "token_uri": f"{server.http}/token",
    }


def _handler(server: VertexServer, method: str, request: Any, answer: Any) -> grpc.RpcMethodHandler:
    def serialize(message: Any) -> bytes:
        return answer.serialize(message) if hasattr(answer, "serialize") else message.SerializeToString()

    return grpc.unary_unary_rpc_method_handler(
        lambda given, context: server.answer(method, given, context),
        request_deserializer=request.deserialize,
        response_serializer=serialize,
    )


def _http_handler(server: VertexServer) -> type[Handler]:
    class Serving(Handler):
        def do_POST(self) -> None:  # noqa: N802 - a name of http.server
            self.body()
            good = {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}
            bad = {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}
            self.respond(server.token_status, good if server.token_status == 200 else bad)

        def do_GET(self) -> None:  # noqa: N802 - a name of http.server
            match = re.fullmatch(r"/storage/v1/b/([^/]+)", urlsplit(self.path).path)
            status = server.buckets.get(match.group(1), 404) if match else 404
            name = match.group(1) if match else ""
            self.respond(status, {"name": name} if status == 200 else {"error": {"message": "refused"}})

    return Serving

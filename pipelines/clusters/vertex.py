"""Vertex AI Pipelines as a platform: pipeline jobs and their schedules.

`aiplatform.PipelineJob` turns a package and its parameters into a job; the service's own clients, from the
same library, do the calls. `PipelineJob.submit` would make a missing bucket and hide what goes wrong there,
`PipelineJobSchedule.update` can change neither package nor parameters, and both wait without a limit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

import google.auth
import google.auth.exceptions
from google.api_core import exceptions
from google.auth.credentials import Credentials
from google.cloud import aiplatform, aiplatform_v1
from google.cloud.storage import Client
from google.protobuf import field_mask_pb2

from calib_core.errors import CalibError, ConfigError
from calib_pipelines.clusters.base import (
    ANSWER_S,
    Run,
    Schedule,
    TryAgainError,
    UnansweredError,
    UnreachableError,
    create_once,
    only,
    refuse_foreign,
    retried,
    same_run,
)
from calib_pipelines.clusters.cron import Cron
from calib_pipelines.packages.reading import Submission

CONSOLE = "https://console.cloud.google.com/vertex-ai/locations"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LABEL = "calib-submission"
STATES = {"queued": "pending", "unspecified": "pending"}
SIGN_IN = (
    "sign in with `gcloud auth application-default login`, or name a service account's key in "
    "$GOOGLE_APPLICATION_CREDENTIALS"
)

T = TypeVar("T")


class _NotFoundError(ConfigError):
    """What was asked for isn't there."""


class _ForbiddenError(ConfigError):
    """The account lacks a permission."""


# The first row whose class and words fit an error says what it means and what to do.
_REFUSALS: tuple[tuple[tuple[type, ...] | type, str, type[CalibError], str], ...] = (
    (
        exceptions.GoogleAPIError,
        "metadata from plugin failed",
        ConfigError,
        f"the credentials are expired or withdrawn: {SIGN_IN}",
    ),
    (exceptions.Unauthenticated, "", ConfigError, f"the credentials are missing or expired: {SIGN_IN}"),
    (
        exceptions.ServiceUnavailable,
        "failed to connect|resol(ution|ve|ving)",
        UnreachableError,
        "check the region, the network and the proxy",
    ),
    (exceptions.NotFound, "", _NotFoundError, "check --project and --region"),
    (
        exceptions.Forbidden,
        "",
        _ForbiddenError,
        "your account needs roles/aiplatform.user in the project, and roles/iam.serviceAccountUser on the "
        "account that --service-account names",
    ),
    ((exceptions.Conflict, exceptions.TooManyRequests), "", TryAgainError, "it is there already, or busy"),
    (exceptions.ClientError, "", ConfigError, "correct what it names, then send it again"),
    (exceptions.GoogleAPIError, "", UnansweredError, "the service failed or did not answer in time"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VertexConnection:
    """Where pipelines run.

    Attributes:
        project: Id of the Google Cloud project.
        region: Such as `europe-west4`.
    """

    project: str
    region: str


class VertexCluster:
    """Pipeline jobs and schedules of one project and region; see `Cluster` for the methods."""

    version = ""

    def __init__(self, settings: VertexConnection) -> None:
        self._settings = settings
        self._parent = f"projects/{settings.project}/locations/{settings.region}"
        try:
            self._credentials: Credentials = google.auth.default(scopes=[SCOPE])[0]
        except google.auth.exceptions.GoogleAuthError as error:
            raise ConfigError(f"no Google credentials ({_one_line(error)}); {SIGN_IN}") from None
        try:
            aiplatform.init(project=settings.project, location=settings.region, credentials=self._credentials)
        except ValueError:
            raise ConfigError(
                f"region {settings.region!r}: Vertex AI has no such region; the list is at "
                "https://cloud.google.com/vertex-ai/docs/general/locations, for example europe-west4"
            ) from None
        place: dict[str, Any] = {
            "credentials": self._credentials,
            "client_options": {"api_endpoint": f"{settings.region}-aiplatform.googleapis.com"},
        }
        self._jobs = aiplatform_v1.PipelineServiceClient(**place)
        self._schedules = aiplatform_v1.ScheduleServiceClient(**place)

    def put_run(self, submission: Submission) -> tuple[Run, bool]:
        """Start a job under the name as its id, which Vertex keeps unique, or find the one that is there."""
        found = self._find_run(submission.name)
        if found is not None:
            return same_run(found, submission), False
        self._check_bucket(submission.pipeline_root)
        job = self._job(submission, submission.fingerprint())

        def create() -> Run:
            try:
                return self._run(
                    self._call(
                        self._jobs.create_pipeline_job,
                        parent=self._parent,
                        pipeline_job=job,
                        pipeline_job_id=submission.name,
                    )
                )
            except UnansweredError as error:  # with an id, the same request can't start a second job
                raise TryAgainError(str(error)) from None

        run = create_once(
            create, lambda: self._find_run(submission.name), what=f"pipeline job {submission.name!r}"
        )
        return same_run(run, submission), True

    def get_run(self, run_id: str) -> Run:
        """The job with that resource name."""
        return self._run(self._call(self._jobs.get_pipeline_job, name=run_id))

    def find_schedules(self, name: str = "") -> list[Schedule]:
        """Schedules of pipelines of that name, or all."""
        request = aiplatform_v1.ListSchedulesRequest(
            parent=self._parent, filter=f'display_name="{name}"' if name else ""
        )
        found = retried(lambda: list(self._call(self._schedules.list_schedules, request=request)))
        return [self._schedule(one) for one in found if "create_pipeline_job_request" in one]

    def put_schedule(self, submission: Submission, cron: Cron) -> tuple[Schedule, str]:
        """Make a schedule, or change the one of that name where it stands; paused ones stay paused."""
        fingerprint = submission.fingerprint(cron.for_vertex)
        found = self.find_schedules(submission.name)
        refuse_foreign(found)
        current = only(found, what=f"schedules named {submission.name!r}")
        if current is not None and current.fingerprint == fingerprint:
            return current, "unchanged"
        self._check_bucket(submission.pipeline_root)
        wanted = aiplatform_v1.Schedule(
            display_name=submission.name,
            cron=cron.for_vertex,
            max_concurrent_run_count=1,
            create_pipeline_job_request=aiplatform_v1.CreatePipelineJobRequest(
                parent=self._parent, pipeline_job=self._job(submission, fingerprint)
            ),
        )
        if current is None:
            created = create_once(
                lambda: self._schedule(
                    self._call(self._schedules.create_schedule, parent=self._parent, schedule=wanted)
                ),
                lambda: only(
                    self.find_schedules(submission.name), what=f"schedules named {submission.name!r}"
                ),
                what=f"schedule {submission.name!r}",
            )
            return created, "created"
        wanted.name = current.id
        mask = field_mask_pb2.FieldMask(
            paths=["cron", "max_concurrent_run_count", "create_pipeline_job_request"]
        )
        updated = retried(
            lambda: self._call(self._schedules.update_schedule, schedule=wanted, update_mask=mask)
        )
        return self._schedule(updated), "updated"

    def pause(self, schedule: Schedule) -> None:
        """Pause it, where it isn't paused yet."""
        if schedule.state != "paused":
            retried(lambda: self._call(self._schedules.pause_schedule, name=schedule.id))

    def resume(self, schedule: Schedule) -> None:
        """Resume it, where it isn't active."""
        if schedule.state != "active":
            retried(lambda: self._call(self._schedules.resume_schedule, name=schedule.id))

    def delete(self, schedule: Schedule) -> None:
        """Delete it, and wait until that is done."""
        try:
            operation = retried(lambda: self._call(self._schedules.delete_schedule, name=schedule.id))
            self._call(lambda timeout: operation.result(timeout=timeout))
        except _NotFoundError:  # an attempt that wasn't answered went through, or someone else was faster
            return

    def _find_run(self, name: str) -> Run | None:
        try:
            return retried(lambda: self.get_run(f"{self._parent}/pipelineJobs/{name}"))
        except _NotFoundError:
            return None

    def _job(self, submission: Submission, fingerprint: str) -> aiplatform_v1.PipelineJob:
        try:
            built = aiplatform.PipelineJob(
                display_name=submission.name,
                template_path=str(submission.package.path),
                job_id=submission.name,
                pipeline_root=submission.pipeline_root,
                parameter_values=dict(submission.parameters),
                project=self._settings.project,
                location=self._settings.region,
                credentials=self._credentials,
            )
        except ValueError as error:
            raise ConfigError(f"{submission.package.path}: {_one_line(error)}") from None
        return aiplatform_v1.PipelineJob(
            display_name=submission.name,
            pipeline_spec=built.pipeline_spec,
            runtime_config=built.runtime_config,
            service_account=submission.service_account,
            labels={LABEL: fingerprint},
        )

    def _check_bucket(self, uri: str) -> None:
        """Refuse a pipeline root whose bucket is missing; one that we may not look at passes."""
        name = uri.removeprefix("gs://").split("/", 1)[0]
        client = Client(project=self._settings.project, credentials=self._credentials)
        try:
            exists = retried(
                lambda: self._call(lambda timeout: client.bucket(name).exists(timeout=timeout, retry=None))
            )
        except _ForbiddenError:  # reading objects needs other rights than looking at buckets
            return
        if not exists:
            raise ConfigError(
                f"bucket gs://{name} of --pipeline-root is missing; make it with: gcloud storage buckets "
                f"create gs://{name} --project={self._settings.project} --location={self._settings.region}"
            )

    def _call(self, function: Callable[..., T], **arguments: Any) -> T:
        """Call the service with a limit of time, and put what goes wrong in words."""
        try:
            return function(**arguments, timeout=ANSWER_S)
        except google.auth.exceptions.GoogleAuthError as error:
            raise ConfigError(f"Google credentials are refused ({_one_line(error)}); {SIGN_IN}") from None
        except exceptions.GoogleAPIError as error:
            raise self._refusal(error) from None
        except OSError as error:  # requests' errors, from Cloud Storage
            raise UnreachableError(
                f"can't be reached ({_one_line(error)}); check the network and proxy"
            ) from None

    def _refusal(self, error: exceptions.GoogleAPIError) -> CalibError:
        text = _one_line(error)
        kind, advice = next(
            (kind, advice)
            for classes, words, kind, advice in _REFUSALS
            if isinstance(error, classes) and re.search(words, text, re.IGNORECASE)
        )
        return kind(f"Vertex AI in {self._settings.project}, {self._settings.region}: {text}; {advice}")

    def _run(self, job: aiplatform_v1.PipelineJob) -> Run:
        short = job.name.rsplit("/", 1)[-1]
        return Run(
            id=job.name,
            name=short,
            state=_state(job.state.name, "PIPELINE_STATE_"),
            link=f"{CONSOLE}/{self._settings.region}/pipelines/runs/{short}?project={self._settings.project}",
            fingerprint=job.labels.get(LABEL, ""),
            tasks={
                task.task_name: _state(task.state.name, "STATE_")
                for task in job.job_detail.task_details
                if task.task_name != short  # the job itself stands among its tasks
            },
            error=job.error.message,
        )

    def _schedule(self, schedule: aiplatform_v1.Schedule) -> Schedule:
        short = schedule.name.rsplit("/", 1)[-1]
        place = f"{self._settings.region}/pipelines/schedules/{short}?project={self._settings.project}"
        return Schedule(
            id=schedule.name,
            name=schedule.display_name,
            state=schedule.state.name.lower(),
            cron=schedule.cron,
            link=f"{CONSOLE}/{place}",
            fingerprint=schedule.create_pipeline_job_request.pipeline_job.labels.get(LABEL, ""),
        )


def _state(name: str, prefix: str) -> str:
    low = name.removeprefix(prefix).lower()
    return STATES.get(low, low)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]

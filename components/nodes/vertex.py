"""Fine-tuning on several machines of Vertex AI, as a custom job with replicas.

Model, data and adapter lie in buckets, which Vertex mounts on every replica under `/gcs/`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError
from google.cloud import aiplatform
from google.cloud.aiplatform_v1.types import JobState

from calib_components.nodes.job import (
    CustomJobSettings,
    Job,
    JobConfig,
    Place,
    ended_by_signal,
    job_of,
    out_of_time,
    passed_on,
)
from calib_components.watching import looks
from calib_core.errors import CalibError, ConfigError
from calib_core.runtime.progress import say

POLL_S = 30.0
PATIENCE_S = 600.0
LABEL = "calib_run"
ENDED = (
    JobState.JOB_STATE_SUCCEEDED,
    JobState.JOB_STATE_FAILED,
    JobState.JOB_STATE_CANCELLED,
    JobState.JOB_STATE_EXPIRED,
)
GOING = ("JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_RUNNING")
MOUNT = "/gcs/"


def custom_job(
    method: str,
    config: JobConfig,
    settings: CustomJobSettings,
    *,
    model: Place,
    data: Place,
    adapter: Place,
) -> None:
    """Fine-tune by a custom job, and cancel it when this process is told to stop.

    Raises:
        CalibError: as `calib_components.nodes.job.finetune` says.
    """
    uris = {"model": model.uri, "data": data.uri, "adapter": adapter.uri}
    places = {
        "model": _mounted("model", model) if Path(model.path).exists() else model.uri,
        "data": _mounted("data", data),
        "adapter": _mounted("adapter", adapter),
    }
    run_job(job_of(method, config, uris, places), settings)


def worker_pools(job: Job, settings: CustomJobSettings) -> list[dict[str, Any]]:
    """One replica that leads, and the others: Vertex wants the first in a pool of its own."""
    machine: dict[str, Any] = {"machine_type": settings.machine_type}
    if settings.accelerator_type:
        machine |= {"accelerator_type": settings.accelerator_type, "accelerator_count": job.processes}
    container = {
        "image_uri": settings.image,
        "command": ["python", "-m", "calib_components.nodes.replica"],
        "args": [str(job.processes), *job.arguments],
        "env": [{"name": name, "value": value} for name, value in sorted(passed_on().items())],
    }
    return [
        {"machine_spec": machine, "replica_count": replicas, "container_spec": container}
        for replicas in (1, job.nodes - 1)
    ]


def run_job(job: Job, settings: CustomJobSettings, *, poll_s: float = POLL_S) -> None:
    """Make a job, or find the one that a try before has made, and wait for its end.

    Args:
        job: what to run.
        settings: where.
        poll_s: seconds between two looks at it.

    Raises:
        ConfigError: Vertex refuses the job.
        CalibError: the job failed, took too long, or is lost.
    """
    where: dict[str, Any] = {"project": settings.project, "location": settings.region}
    made: Any
    with _explained(f"the job {job.name} in {settings.project}, {settings.region}"):
        running = aiplatform.CustomJob.list(filter=_going(job.name), **where)
        if running:
            made = running[0]
            say(f"job {job.name}: already exists from an earlier attempt; watching it")
        else:
            made = aiplatform.CustomJob(
                display_name=job.name,
                worker_pool_specs=worker_pools(job, settings),
                staging_bucket=settings.staging_bucket,
                labels={LABEL: job.name},
                **where,
            )
            made.submit(
                service_account=settings.service_account or None,
                network=settings.network or None,
                timeout=settings.timeout_s,
            )
            say(f"job {job.name}: {job.nodes} nodes, {made.resource_name}")
    ended = False
    try:
        with ended_by_signal():
            state = _watched(made, job.name, settings.timeout_s, poll_s)
        ended = True
    finally:
        if not ended:
            with contextlib.suppress(exceptions.GoogleAPICallError):
                made.cancel()
    if state != JobState.JOB_STATE_SUCCEEDED:
        raise CalibError(
            f"the custom job {made.resource_name} ended as {state.name.removeprefix('JOB_STATE_').lower()}"
            f"{_message(made)}; its logs are in Cloud Logging under this job's number"
        )


def _watched(made: Any, name: str, timeout_s: float, poll_s: float) -> JobState:
    """Wait for the end of a job, and say how it goes; the state that it ended in."""
    said = JobState(0)
    try:
        for state in looks(
            lambda: JobState(made.state),
            every_s=poll_s,
            patience_s=PATIENCE_S,
            passes=_passes,
            timeout_s=timeout_s,
        ):
            if state != said:
                say(f"job {name}: {state.name.removeprefix('JOB_STATE_').lower()}")
                said = state
            if state in ENDED:
                return state
    except (exceptions.GoogleAPICallError, exceptions.RetryError) as error:
        raise CalibError(
            f"the job {name} is lost: {error}; look for {made.resource_name} in the console"
        ) from error
    raise out_of_time(name)


def _passes(error: Exception) -> bool:
    failed = isinstance(error, exceptions.GoogleAPICallError | exceptions.RetryError)
    return failed and not isinstance(error, exceptions.ClientError)


def _message(made: Any) -> str:
    with contextlib.suppress(exceptions.GoogleAPICallError, RuntimeError, AttributeError):
        if made.error and made.error.message:
            return f": {made.error.message}"
    return ""


def _going(name: str) -> str:
    states = " OR ".join(f'state="{state}"' for state in GOING)
    return f'labels.{LABEL}="{name}" AND ({states})'


@contextlib.contextmanager
def _explained(what: str) -> Any:
    """Turn the client library's errors into messages that say what to do."""
    try:
        yield
    except (DefaultCredentialsError, RefreshError) as error:
        raise ConfigError(
            f"no valid Google credentials for {what} ({error}); run this as a service account, or run "
            "`gcloud auth application-default login`"
        ) from error
    except ValueError as error:  # of a region that the library doesn't know, say
        raise ConfigError(f"Vertex can't make {what}: {error}; correct cluster") from error
    except exceptions.PermissionDenied as error:
        raise ConfigError(
            f"no permission for {what} ({error.message}); give this account the role "
            "roles/aiplatform.user, and let it act as the service account of the nodes"
        ) from error
    except exceptions.ClientError as error:
        raise ConfigError(f"Vertex refuses {what} ({error.message}); correct cluster") from error
    except (exceptions.GoogleAPICallError, exceptions.RetryError, OSError, TransportError) as error:
        raise CalibError(
            f"Vertex did not answer for {what} ({error}); run this again: a job that was created "
            "after all is found"
        ) from error


def _mounted(name: str, place: Place) -> str:
    path = str(Path(place.path).absolute())
    if path.startswith(MOUNT):
        return path
    if place.uri.startswith("gs://"):
        return MOUNT + place.uri.removeprefix("gs://")
    raise ConfigError(
        f"{name} is {place.uri}, which other machines can't reach; on Vertex it must lie in a bucket (gs://)"
    )

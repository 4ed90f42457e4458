"""Fine-tuning on several machines of a Kubernetes cluster, as a `TrainJob` of Kubeflow Trainer.

The runtime (`torch-distributed`, or one of the cluster's own) says how nodes find each other; torchrun starts
the processes on each of them. `trainjob` has what the job looks like, `trainjob_api` how the cluster is
asked.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from calib_components.nodes.job import (
    JobConfig,
    Place,
    TrainJobSettings,
    ended_by_signal,
    job_of,
    out_of_time,
)
from calib_components.nodes.trainjob import train_job_body
from calib_components.nodes.trainjob_api import GoneError, ThereAlreadyError, TrainJobApi, connect
from calib_components.watching import looks
from calib_core.errors import CalibError, ConfigError
from calib_core.runtime.progress import say
from calib_core.storage.files import whole_folder
from calib_core.storage.uris import is_remote, list_files

POLL_S = 10.0
PATIENCE_S = 300.0
"""How long answers may fail before a job is given up: a control plane is upgraded in minutes."""

GONE_POLLS = 60
LAST_LINES = 20
SPARE_GIB = 16
"""Storage of a node beside the model: two checkpoints and an adapter of rank 128 on 8 billion parameters."""


def train_job(
    method: str,
    config: JobConfig,
    settings: TrainJobSettings,
    *,
    model: Place,
    data: Place,
    adapter: Place,
) -> None:
    """Fine-tune by a `TrainJob`, and remove it when it has ended.

    What the nodes can't reach under its URI is copied to the volume, and the adapter back from it. All that
    can be refused is refused before anything is copied.

    Raises:
        CalibError: as `calib_components.nodes.job.finetune` says.
    """
    uris = {"model": model.uri, "data": data.uri, "adapter": adapter.uri}
    work = Path(settings.mount) / job_of(method, config, uris, uris).name
    given = {"model": model, "data": data}
    places = {name: _place(name, place, settings, work) for name, place in given.items()}
    places["adapter"] = adapter.uri
    if not is_remote(adapter.uri):
        _need_volume("adapter", adapter, settings)
        places["adapter"] = str(work / "adapter")
    job = job_of(method, config, uris, places)
    cluster = connect(settings.namespace)
    body = train_job_body(
        job,
        settings,
        cluster.runtime(settings.runtime),
        maker=cluster.owner,
        storage=_storage(places["model"], config.base_model),
    )
    cluster.check(body)
    for name, place in given.items():
        if places[name] == str(work / name):
            _copy(place.path, work / name)
    run_job(cluster, body, timeout_s=settings.timeout_s)
    if not is_remote(adapter.uri):
        with whole_folder(adapter.path) as folder:
            shutil.copytree(work / "adapter", folder, dirs_exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)


def run_job(cluster: TrainJobApi, body: Mapping[str, Any], *, timeout_s: float) -> None:
    """Make a job, or find the one of this name that a try before has made, and wait for its end.

    A job of this name that has failed is removed and made again. However this ends, the job is removed; where
    that can't be done, because this process is killed or the cluster can't be reached, the cluster does it
    when the pod that made the job is removed, and stops the nodes after `timeout_s`.

    Args:
        cluster: where.
        body: of the job, as `train_job_body` makes it.
        timeout_s: seconds after which the job is given up.

    Raises:
        ConfigError: the cluster refuses the job.
        CalibError: the job failed, took too long, or is lost.
    """
    name = body["metadata"]["name"]
    _make(cluster, body)
    try:
        with ended_by_signal():
            failure = _watched(cluster, name, timeout_s)
            lines = _last_lines(cluster, name) if failure else []
    finally:
        _remove(cluster, name)
    if failure:
        why = "".join(f"\n  {line}" for line in lines) or " it left no log"
        raise CalibError(f"the training job {name} failed ({failure}); its first node said:{why}")


def _make(cluster: TrainJobApi, body: Mapping[str, Any]) -> None:
    name, trainer = body["metadata"]["name"], body["spec"]["trainer"]
    try:
        cluster.create(body)
        say(
            f"job {name}: {trainer['numNodes']} nodes, {trainer['numProcPerNode']} processes on each, "
            f"runtime {body['spec']['runtimeRef']['name']}, namespace {cluster.namespace}"
        )
        return
    except ThereAlreadyError:
        pass
    except CalibError as error:
        if isinstance(error, ConfigError) or not _is_there(cluster, name):
            raise
    with contextlib.suppress(GoneError):
        job = cluster.get(name)
        if not _ended(job).get("Failed") and "deletionTimestamp" not in job["metadata"]:
            cluster.adopt(name)
            say(f"job {name}: already exists; watching it")
            return
        say(f"job {name}: failed in an earlier attempt, or is being removed; creating it again")
        cluster.delete(name)
        _wait_until_gone(cluster, name)
    _make(cluster, body)


def _is_there(cluster: TrainJobApi, name: str) -> bool:
    """Whether a job was made although no answer came."""
    try:
        cluster.get(name)
    except CalibError:
        return False
    return True


def _watched(cluster: TrainJobApi, name: str, timeout_s: float) -> str:
    """Wait for the end of a job, passing on its log; why it failed, empty if it didn't."""
    said, following = "", False

    def look() -> tuple[dict[str, str], Mapping[str, Any]]:
        ended = _ended(cluster.get(name))
        return ended, {} if ended or following else cluster.first_pod(name)

    try:
        for ended, pod in looks(
            look, every_s=POLL_S, patience_s=PATIENCE_S, passes=_passes, timeout_s=timeout_s
        ):
            if "Complete" in ended:
                say(f"job {name}: complete")
                return ""
            if "Failed" in ended:
                return ended["Failed"]
            if pod and (now := f"{pod['phase'].lower()} {pod['trouble']}".rstrip()) != said:
                say(f"job {name}: first node {now}")
                said = now
            if pod and pod["phase"] != "Pending":
                following = True
                threading.Thread(target=_follow, args=(cluster, pod["name"]), daemon=True).start()
    except GoneError as error:
        raise CalibError(
            f"the job {name} was removed while it ran, by hand or with the pod that made it; run this again"
        ) from error
    except CalibError as error:
        raise CalibError(
            f"the job {name} is lost: {error}; look for it with `kubectl get trainjobs`, and delete it if it "
            "is still there"
        ) from error
    raise out_of_time(name)


def _passes(error: Exception) -> bool:
    return isinstance(error, CalibError) and not isinstance(error, ConfigError | GoneError)


def _ended(job: Mapping[str, Any]) -> dict[str, str]:
    """The conditions that end a job, as far as they are met, each with its reason."""
    return {
        condition["type"]: f"{condition.get('reason', '')}: {condition.get('message', '')}"
        for condition in job.get("status", {}).get("conditions", [])
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True"
    }


def _follow(cluster: TrainJobApi, pod: str) -> None:
    with contextlib.suppress(Exception):  # the log is a courtesy; the job's state decides
        for line in cluster.log(pod, follow=True):
            say(line)


def _last_lines(cluster: TrainJobApi, name: str) -> list[str]:
    """What the first node said last: `calib`'s own errors where there are any, else the end of its log."""
    try:
        pod = cluster.first_pod(name)
        lines = list(cluster.log(pod["name"], follow=False)) if pod else []
    except CalibError:
        return []
    errors = list(dict.fromkeys(line for line in lines if line.startswith("error: ")))
    return errors or lines[-LAST_LINES:]


def _remove(cluster: TrainJobApi, name: str) -> None:
    try:
        cluster.delete(name)
    except GoneError:
        pass
    except CalibError as error:
        say(f"job {name}: could not be removed ({error}); `kubectl delete trainjob {name}`")


def _wait_until_gone(cluster: TrainJobApi, name: str) -> None:
    for _ in range(GONE_POLLS):
        try:
            cluster.get(name)
        except GoneError:
            return
        time.sleep(min(POLL_S, 1))
    raise CalibError(
        f"the failed job {name} does not go away; run `kubectl delete trainjob {name}`, and this again"
    )


def _place(name: str, place: Place, settings: TrainJobSettings, work: Path) -> str:
    """Where the nodes find something: in the bucket, on the hub, on the volume, or below `work` there."""
    if is_remote(place.uri) or not Path(place.path).exists():
        return place.uri
    _need_volume(name, place, settings)
    on_volume = Path(place.path).absolute().is_relative_to(settings.mount)
    return place.path if on_volume else str(work / name)


def _copy(source: str, copy: Path) -> None:
    if not copy.exists():  # whole, where a try before has made it
        with whole_folder(copy) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)


def _need_volume(name: str, place: Place, settings: TrainJobSettings) -> None:
    if not settings.volume or not Path(settings.mount).is_dir():
        state = f"{settings.mount} is no folder here" if settings.volume else "cluster names no volume"
        raise ConfigError(
            f"{name} is {place.uri}, which other machines can't reach, and {state}; use a pipeline root in a "
            "bucket (gs://, s3://, minio://), or mount a volume claim in this task too and name it in "
            "cluster: volume, mount"
        )


def _storage(*models: str) -> str:
    """What the nodes ask for to hold copies of the models that lie in buckets; empty if none does."""
    files: Iterable[Any] = [file for uri in models if is_remote(uri) for file in list_files(uri)]
    gib = math.ceil(sum(file.size_bytes for file in files) / 2**30)
    return f"{gib + SPARE_GIB}Gi" if files else ""

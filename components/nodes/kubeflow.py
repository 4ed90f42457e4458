"""Fine-tuning on several machines of a Kubernetes cluster, as a `TrainJob` of Kubeflow Trainer.

The job is made, watched and removed through the `kubeflow` SDK's `TrainerClient`. The runtime
(`torch-distributed` or one of the cluster's own) says how nodes find each other; torchrun starts one process
for each GPU of a node.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import CustomTrainer, TrainerClient
from kubeflow.trainer.options import (
    ContainerPatch,
    JobSetSpecPatch,
    JobSetTemplatePatch,
    JobSpecPatch,
    JobTemplatePatch,
    Name,
    PodSpecPatch,
    PodTemplatePatch,
    ReplicatedJobPatch,
    RuntimePatch,
    TrainingRuntimeSpecPatch,
)
from kubernetes import client as kubernetes
from kubernetes import config as kubernetes_config
from urllib3.exceptions import HTTPError

from calib_components.nodes.job import Job, KubeflowSettings, Place, ended_by_signal, job_of
from calib_core.errors import CalibError, ConfigError
from calib_core.runtime.progress import say
from calib_core.storage.files import whole_folder
from calib_core.training.config import FinetuneConfig

POLL_S = 10.0
LOST_POLLS = 30
"""Answers in a row that may fail before a job is given up: a control plane is upgraded in minutes."""

REQUEST_S = 10
LAST_LINES = 20
ARGUMENTS_VARIABLE = "CALIB_ARGUMENTS"


def run_calib() -> None:
    """What each process of a node runs: the SDK copies this function's source into the job."""
    import json  # noqa: PLC0415
    import os  # noqa: PLC0415
    import runpy  # noqa: PLC0415
    import sys  # noqa: PLC0415

    sys.argv = ["calib", *json.loads(os.environ["CALIB_ARGUMENTS"])]
    runpy.run_module("calib_core", run_name="__main__")


def train_job(
    method: str,
    config: FinetuneConfig,
    settings: KubeflowSettings,
    *,
    model: Place,
    data: Place,
    adapter: Place,
) -> None:
    """Fine-tune by a `TrainJob`, and remove it when it has ended or this process is told to stop.

    What the nodes can't reach under its URI is copied to the volume, and the adapter back from it.

    Raises:
        CalibError: as `calib_components.nodes.job.finetune` says.
    """
    uris = {"model": model.uri, "data": data.uri, "adapter": adapter.uri}
    work = Path(settings.mount) / job_of(method, config, uris, uris).name
    if not _in_bucket(adapter.uri):
        _need_volume("adapter", adapter, settings)
    places = {
        "model": _reachable("model", model, settings, work),
        "data": _reachable("data", data, settings, work),
        "adapter": adapter.uri if _in_bucket(adapter.uri) else str(work / "adapter"),
    }
    job = job_of(method, config, uris, places)
    run_job(
        connect(settings.namespace),
        job.name,
        runtime=settings.runtime,
        trainer=trainer_of(job, settings),
        options=options_of(settings),
        timeout_s=settings.timeout_s,
    )
    if not _in_bucket(adapter.uri):
        with whole_folder(adapter.path) as folder:
            shutil.copytree(work / "adapter", folder, dirs_exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)


def trainer_of(job: Job, settings: KubeflowSettings) -> CustomTrainer:
    """What runs on each node: the image, its resources, and the command in the environment."""
    resources: dict[str, Any] = {"gpu" if settings.gpu else "cpu": str(job.processes)}
    if settings.cpu:
        resources["cpu"] = settings.cpu
    if settings.memory:
        resources["memory"] = settings.memory
    return CustomTrainer(
        func=run_calib,
        image=settings.image,
        num_nodes=job.nodes,
        resources_per_node=resources,
        env={ARGUMENTS_VARIABLE: json.dumps(job.arguments)},
    )


def options_of(settings: KubeflowSettings) -> list[Any]:
    """The volume, where one is named: the runtime has the rest."""
    if not settings.volume:
        return []
    pod = PodSpecPatch(
        volumes=[{"name": "calib", "persistentVolumeClaim": {"claimName": settings.volume}}],
        containers=[
            ContainerPatch(name="node", volume_mounts=[{"name": "calib", "mountPath": settings.mount}])
        ],
    )
    nodes = ReplicatedJobPatch(
        name="node", template=JobTemplatePatch(spec=JobSpecPatch(template=PodTemplatePatch(spec=pod)))
    )
    jobs = JobSetTemplatePatch(spec=JobSetSpecPatch(replicated_jobs=[nodes]))
    return [RuntimePatch(training_runtime_spec=TrainingRuntimeSpecPatch(template=jobs))]


def connect(namespace: str = "") -> TrainerClient:
    """A client of the cluster that this pod is in, or that the kubeconfig names.

    Raises:
        ConfigError: there is no cluster to speak to.
        CalibError: it does not answer.
    """
    settings = kubernetes.Configuration()
    try:
        if os.environ.get("KUBECONFIG") or "KUBERNETES_SERVICE_HOST" not in os.environ:
            kubernetes_config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        else:
            kubernetes_config.load_incluster_config(client_configuration=settings)
    except (kubernetes_config.ConfigException, TypeError) as error:
        raise ConfigError(
            f"no Kubernetes cluster is configured ({error}); run this in a pod of the cluster, or set "
            "KUBECONFIG"
        ) from error
    settings.retries = 2
    try:
        kubernetes.VersionApi(kubernetes.ApiClient(settings)).get_code(_request_timeout=REQUEST_S)
    except HTTPError as error:
        raise CalibError(
            f"the Kubernetes API at {settings.host} can't be reached ({error}); check the address and the "
            "network, and run this again: no job was made"
        ) from error
    except kubernetes.ApiException as error:
        raise ConfigError(_refused("its version", settings.host, error)) from error
    return TrainerClient(KubernetesBackendConfig(namespace=namespace or None, client_configuration=settings))


def run_job(
    client: TrainerClient,
    name: str,
    *,
    runtime: str,
    trainer: CustomTrainer,
    options: Sequence[Any] = (),
    timeout_s: float,
    poll_s: float = POLL_S,
) -> None:
    """Make a job, or find the one of this name that a try before has made, and wait for its end.

    A job of this name that has failed is removed and made anew. Whatever happens, none is left behind, except
    where the cluster can't be reached any more; the message says so.

    Args:
        client: of a cluster, or of another back end of the SDK.
        name: of the job.
        runtime: training runtime.
        trainer: what to run.
        options: further options of the SDK.
        timeout_s: seconds after which the job is given up.
        poll_s: seconds between two looks at it.

    Raises:
        ConfigError: the cluster refuses the job, or has no such runtime.
        CalibError: the job failed, took too long, or is lost.
    """
    _make(client, name, runtime=runtime, trainer=trainer, options=options)
    try:
        with ended_by_signal():
            status = _watched(client, name, time.monotonic() + timeout_s, poll_s)
            lines = _last_lines(client, name) if status != "Complete" else []
    finally:
        _remove(client, name)
    if status != "Complete":
        why = "".join(f"\n  {line}" for line in lines) or " it left no log"
        raise CalibError(f"the training job {name} failed; its first node said:{why}")


def _make(
    client: TrainerClient, name: str, *, runtime: str, trainer: CustomTrainer, options: Sequence[Any]
) -> None:
    try:
        client.train(runtime=runtime, trainer=trainer, options=[Name(name), *options])
        say(f"job {name}: {trainer.num_nodes or 1} nodes, runtime {runtime}")
    except ValueError as error:  # of a back end that knows its runtimes
        raise ConfigError(f"the job {name} can't be made ({error}); check cluster") from error
    except (RuntimeError, TimeoutError) as error:
        cause = error.__cause__
        status = getattr(cause, "status", None)
        if status == 409:
            if _status(client, name) != "Failed":
                say(f"job {name}: there already, made by a try before; watching it")
                return
            say(f"job {name}: failed in a try before; making it anew")
            _remove(client, name)
            _wait_until_gone(client, name)
            _make(client, name, runtime=runtime, trainer=trainer, options=options)
        elif status == 404:
            raise ConfigError(
                f"{error}: the cluster has no training runtime {runtime!r}, or no Kubeflow Trainer; install "
                "it, or name another runtime in cluster"
            ) from error
        elif status in (400, 401, 403, 422):
            raise ConfigError(_refused(f"the job {name}", "", cause)) from error
        else:
            # It may have been made although no answer came: not left behind either.
            with contextlib.suppress(RuntimeError, TimeoutError, ValueError):
                client.delete_job(name)
            raise CalibError(f"{error} ({_reason(error)}); run this again: no job is left") from error


def _watched(client: TrainerClient, name: str, deadline: float, poll_s: float) -> str:
    """The state in which a job ended; its log is passed on meanwhile."""
    state, lost, following = "", 0, False
    while time.monotonic() < deadline:
        try:
            now = _status(client, name)
            lost = 0
        except (RuntimeError, TimeoutError) as error:
            lost += 1
            if lost > LOST_POLLS or getattr(error.__cause__, "status", None) in (401, 403, 404):
                raise CalibError(
                    f"the job {name} is lost ({_reason(error)}); look for it with `kubectl get trainjobs`, "
                    "and delete it where it is still there"
                ) from error
            now = state
        if now != state:
            say(f"job {name}: {now}")
            state = now
        if state in ("Complete", "Failed"):
            return state
        if state == "Running" and not following:
            following = True
            threading.Thread(target=_follow, args=(client, name), daemon=True).start()
        time.sleep(poll_s)
    raise CalibError(
        f"the job {name} has not ended in time; raise timeout_s in cluster, or give it more nodes"
    )


def _status(client: TrainerClient, name: str) -> str:
    return str(client.get_job(name).status)


def _follow(client: TrainerClient, name: str) -> None:
    with contextlib.suppress(Exception):  # the log is a courtesy; the job's state decides
        for line in client.get_job_logs(name, follow=True):
            say(line.rstrip("\n"))


def _last_lines(client: TrainerClient, name: str) -> list[str]:
    """What the first node said last: `calib`'s own errors where there are any, else the end of its log."""
    try:
        lines = [line for text in client.get_job_logs(name) for line in text.splitlines()]
    except (RuntimeError, TimeoutError, ValueError):
        return []
    errors = list(dict.fromkeys(line for line in lines if line.startswith("error: ")))
    return errors or lines[-LAST_LINES:]


def _remove(client: TrainerClient, name: str) -> None:
    try:
        client.delete_job(name)
    except (RuntimeError, TimeoutError, ValueError) as error:
        if getattr(error.__cause__, "status", None) != 404:
            say(f"job {name}: could not be removed ({_reason(error)}); `kubectl delete trainjob {name}`")


def _wait_until_gone(client: TrainerClient, name: str, tries: int = 60) -> None:
    for _ in range(tries):
        try:
            _status(client, name)
        except (RuntimeError, TimeoutError) as error:
            if getattr(error.__cause__, "status", None) == 404:
                return
        time.sleep(1)
    raise CalibError(
        f"the failed job {name} does not go away; run `kubectl delete trainjob {name}`, and this again"
    )


def _refused(what: str, where: str, error: Any) -> str:
    """What a cluster answered to a request that it refuses, and what to do about it."""
    remedies = {
        401: "log in again, or give the pod a service account with a valid token",
        403: "let the service account create, get, list and delete trainjobs.trainer.kubeflow.org, and get "
        "pods and pods/log (docs/distributed.md has the role)",
    }
    remedy = remedies.get(error.status, "correct cluster")
    return f"the cluster{where and ' ' + where} refuses {what} ({_reason(error)}); {remedy}"


def _reason(error: BaseException) -> str:
    """An error in one line: the SDK's own says what it tried, its cause says what was wrong."""
    cause = error.__cause__ or error
    status, message = getattr(cause, "status", None), str(cause).strip().partition("\n")[0]
    with contextlib.suppress(AttributeError, ValueError, TypeError, KeyError):
        message = json.loads(cause.body)["message"]  # type: ignore[attr-defined]
    return f"{status}: {message}" if status else message


def _reachable(name: str, place: Place, settings: KubeflowSettings, work: Path) -> str:
    """Where the nodes find something: in the bucket, on the volume, or on the hub."""
    if _in_bucket(place.uri) or not Path(place.path).exists():
        return place.uri
    _need_volume(name, place, settings)
    if Path(place.path).absolute().is_relative_to(settings.mount):
        return place.path
    copy = work / name
    if not copy.exists():  # whole, where a try before has made it
        with whole_folder(copy) as folder:
            shutil.copytree(place.path, folder, dirs_exist_ok=True)
    return str(copy)


def _need_volume(name: str, place: Place, settings: KubeflowSettings) -> None:
    if not settings.volume or not Path(settings.mount).is_dir():
        state = f"{settings.mount} is no folder here" if settings.volume else "cluster names no volume"
        raise ConfigError(
            f"{name} is {place.uri}, which other machines can't reach, and {state}; use a pipeline root in a "
            "bucket (gs://), or mount a volume claim in this task too and name it in cluster: volume, mount"
        )


def _in_bucket(uri: str) -> bool:
    return uri.startswith("gs://")

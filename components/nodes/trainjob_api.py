"""The Kubernetes API, as far as a `TrainJob` needs it: runtimes, jobs, their pods' logs, and this pod.

It speaks through the `kubernetes` client. The `kubeflow` SDK makes jobs too, but lets nobody say whom a job
belongs to or how many processes a node starts, and doesn't see what a cluster leaves out of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kubernetes import client as kubernetes
from kubernetes import config as kubernetes_config
from urllib3.exceptions import HTTPError

from calib_components.nodes.trainjob import GROUP, NODE, VERSION, Pod, owner
from calib_core.errors import CalibError, ConfigError

REQUEST_S = (10, 60)
"""Seconds to reach the API, and to wait for its answer."""

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
PLATFORMS = re.compile(r"KFP_|ARGO_|KUBERNETES_|PET_|AWS_(ROLE_ARN|WEB_IDENTITY|CONTAINER_|STS_REGIONAL)")
"""Variables that KFP, Argo, Kubernetes, Trainer and AWS give to a pod, each pod its own."""

ROLE = "deploy/kubernetes/calib-train.yaml has the role"
OLD_TRAINER = (
    "this cluster's Kubeflow Trainer is older than 2.2, which is needed here: it silently leaves {dropped} "
    "out of a job; have Kubeflow Trainer upgraded to 2.2 or newer, or train on one machine (nodes 1, "
    "with several processes)"
)


class GoneError(CalibError):
    """A job is not there, or not any more."""


class ThereAlreadyError(CalibError):
    """A job of this name is there already."""


class TrainJobApi:
    """The training jobs of one namespace of a cluster.

    Attributes:
        namespace: of the jobs.
        pod: the pod that this process runs in; None if it runs outside the cluster.
    """

    def __init__(self, api: kubernetes.ApiClient, namespace: str, pod: Pod | None) -> None:
        self.namespace, self.pod = namespace, pod
        self._objects, self._core = kubernetes.CustomObjectsApi(api), kubernetes.CoreV1Api(api)
        self._jobs = (GROUP, VERSION, namespace, "trainjobs")

    @property
    def owner(self) -> Pod | None:
        """The pod that jobs here can belong to: owners are of the same namespace."""
        return self.pod if self.pod and self.pod.namespace == self.namespace else None

    def runtime(self, name: str) -> dict[str, Any]:
        """A training runtime of the namespace, or else of the whole cluster.

        Raises:
            ConfigError: there is none, or this account may not read it.
        """
        with _explained(f"the training runtime {name}", gone=False):
            try:
                return self._asked("get_namespaced", GROUP, VERSION, self.namespace, "trainingruntimes", name)
            except kubernetes.ApiException as error:
                if error.status != 404:
                    raise
            try:
                return self._asked("get_cluster", GROUP, VERSION, "clustertrainingruntimes", name)
            except kubernetes.ApiException as error:
                if error.status != 404:
                    raise
                raise ConfigError(
                    f"the cluster has no training runtime {name!r}, or no Kubeflow Trainer 2 "
                    f"({_reason(error)}); install it, or name another runtime in cluster"
                ) from error

    def check(self, body: Mapping[str, Any]) -> None:
        """See whether the cluster would take a job, and all of it, without making it.

        Raises:
            ConfigError: it refuses the job, or its Kubeflow Trainer is too old for it.
        """
        with contextlib.suppress(ThereAlreadyError):
            kept = self._create(body, dry_run="All")
            if dropped := dropped_fields(body, kept):
                raise ConfigError(OLD_TRAINER.format(dropped=", ".join(dropped)))

    def create(self, body: Mapping[str, Any]) -> None:
        """Make a job.

        Raises:
            ThereAlreadyError: one of this name is there.
            ConfigError: the cluster refuses it.
            CalibError: it does not answer; the job may have been made all the same.
        """
        self._create(body)

    def _create(self, body: Mapping[str, Any], **options: str) -> dict[str, Any]:
        with _explained(f"the job {body['metadata']['name']}", gone=False):
            return self._asked("create_namespaced", *self._jobs, body, **options)

    def get(self, name: str) -> dict[str, Any]:
        """A job as it is.

        Raises:
            GoneError: it is not there.
            CalibError: the cluster refuses (`ConfigError`) or does not answer.
        """
        with _explained(f"reading the job {name}"):
            return self._asked("get_namespaced", *self._jobs, name)

    def adopt(self, name: str) -> None:
        """Have a job that a pod before this one has made go with this pod.

        Raises:
            CalibError: as in `get`.
        """
        if self.owner:
            patch = {"metadata": {"ownerReferences": [owner(self.owner)]}}
            with _explained(f"changing the owner of the job {name}"):
                self._asked("patch_namespaced", *self._jobs, name, patch)

    def delete(self, name: str) -> None:
        """Remove a job, and with it all that belongs to it.

        Raises:
            CalibError: as in `get`.
        """
        with _explained(f"removing the job {name}"):
            self._asked("delete_namespaced", *self._jobs, name)

    def first_pod(self, name: str) -> dict[str, str]:
        """Name, phase and trouble of the pod of a job's first node; empty if there is none yet.

        Raises:
            CalibError: as in `get`.
        """
        selector = f"jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0"
        with _explained(f"the pods of the job {name}"):
            pods = self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _request_timeout=REQUEST_S
            ).items
        found = [pod for pod in pods if any(container.name == NODE for container in pod.spec.containers)]
        if not found:
            return {}
        newest = max(found, key=lambda pod: pod.metadata.creation_timestamp)
        return {"name": newest.metadata.name, "phase": newest.status.phase, "trouble": _trouble(newest)}

    def log(self, pod: str, *, follow: bool) -> Iterator[str]:
        """Lines of a node's log, as they come where it is followed.

        Raises:
            CalibError: as in `get`.
        """
        with _explained(f"the log of the pod {pod}"):
            answer = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=NODE, follow=follow, _preload_content=False
            )
            rest = b""
            for part in answer.stream():
                *lines, rest = (rest + part).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")

    def _asked(self, what: str, *given: Any, **options: Any) -> dict[str, Any]:
        call = getattr(self._objects, f"{what}_custom_object")
        answer: dict[str, Any] = call(*given, _request_timeout=REQUEST_S, **options)
        return answer


def connect(namespace: str = "") -> TrainJobApi:
    """The cluster that this pod is in, or that the kubeconfig names.

    Args:
        namespace: of the jobs; this pod's own, or the kubeconfig's, if left out.

    Raises:
        ConfigError: there is no cluster to speak to, or it refuses.
        CalibError: it does not answer.
    """
    settings = kubernetes.Configuration()
    inside = not os.environ.get("KUBECONFIG") and "KUBERNETES_SERVICE_HOST" in os.environ
    try:
        if inside:
            kubernetes_config.load_incluster_config(client_configuration=settings)
            own = NAMESPACE_FILE.read_text().strip()
        else:
            file = os.environ.get("KUBECONFIG")
            kubernetes_config.load_kube_config(file, client_configuration=settings)
            _, context = kubernetes_config.list_kube_config_contexts(file)
            own = context["context"].get("namespace", "default")
    except (kubernetes_config.ConfigException, OSError, TypeError) as error:
        raise ConfigError(
            f"no Kubernetes cluster is configured ({error}); run this in a pod of the cluster, or set "
            "KUBECONFIG"
        ) from error
    settings.retries = 2
    api = kubernetes.ApiClient(settings)
    try:
        pod = _this_pod(api, own) if inside else None
        if not inside:
            kubernetes.VersionApi(api).get_code(_request_timeout=REQUEST_S)
    except HTTPError as error:
        raise CalibError(
            f"the Kubernetes API at {settings.host} can't be reached ({error}); check the address and the "
            "network, and run this again: no job was made"
        ) from error
    except kubernetes.ApiException as error:
        raise ConfigError(_refused("reading this pod" if inside else "its version", error)) from error
    return TrainJobApi(api, namespace or own, pod)


def _this_pod(api: kubernetes.ApiClient, namespace: str) -> Pod:
    name = os.environ.get("KFP_POD_NAME") or socket.gethostname()  # long names are cut in host names
    pod = kubernetes.CoreV1Api(api).read_namespaced_pod(name, namespace, _request_timeout=REQUEST_S)
    plain = api.sanitize_for_serialization(pod)
    container = next(
        (found for found in plain["spec"]["containers"] if found["name"] == "main"),  # Argo's name for it
        plain["spec"]["containers"][0],
    )
    return Pod(
        name=name,
        uid=plain["metadata"]["uid"],
        namespace=namespace,
        account=plain["spec"].get("serviceAccountName", ""),
        environment=tuple(filter(_is_given, container.get("env", []))),
        pull_secrets=tuple(plain["spec"].get("imagePullSecrets", [])),
    )


def _is_given(variable: Mapping[str, Any]) -> bool:
    """Whether a pod's variable is its maker's, and no platform's: those are other ones in another pod."""
    source = variable.get("valueFrom", {}).keys() or {"value"}
    return not PLATFORMS.match(variable["name"]) and bool(
        source & {"value", "secretKeyRef", "configMapKeyRef"}
    )


def dropped_fields(sent: Any, kept: Any, path: str = "") -> list[str]:
    """The fields, by path, of what was sent that are not in what a cluster kept of it.

    >>> dropped_fields({"spec": {"a": 1, "b": [{"c": 2}]}}, {"spec": {"a": 1, "b": [{}], "d": 3}})
    ['spec.b[0].c']
    """
    if isinstance(sent, Mapping) and isinstance(kept, Mapping):
        names = [(name, f"{path}.{name}".lstrip(".")) for name in sent]
        return [
            field
            for name, where in names
            for field in (dropped_fields(sent[name], kept[name], where) if name in kept else [where])
        ]
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        return [
            field
            for number, (before, after) in enumerate(zip(sent, kept, strict=True))
            for field in dropped_fields(before, after, f"{path}[{number}]")
        ]
    return []


def _trouble(pod: Any) -> str:
    """Why a pod doesn't start: an image that can't be pulled, no node for it, and the like."""
    for status in pod.status.container_statuses or []:
        if status.state and status.state.waiting and status.state.waiting.message:
            return f"{status.state.waiting.reason}: {status.state.waiting.message}"
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    return ""


@contextlib.contextmanager
def _explained(what: str, *, gone: bool = True) -> Iterator[None]:
    """Turn the client's errors into messages that say what to do; `what` is what was asked for."""
    try:
        yield
    except kubernetes.ApiException as error:
        if error.status == 409:
            raise ThereAlreadyError(f"{what} is there already ({_reason(error)})") from error
        if error.status == 404 and gone:
            raise GoneError(f"it is not there ({_reason(error)})") from error
        if 400 <= (error.status or 0) < 500 and error.status != 429:
            raise ConfigError(_refused(what, error)) from error
        raise CalibError(f"the cluster fails at {what} ({_reason(error)}); run this again") from error
    except HTTPError as error:
        raise CalibError(f"the cluster does not answer for {what} ({error}); run this again") from error


def _refused(what: str, error: kubernetes.ApiException) -> str:
    """What a cluster answered to a request that it refuses, and what to do about it."""
    reason = _reason(error)
    if error.status == 401:
        remedy = "log in again, or give the pod a service account with a valid token"
    elif (
        error.status == 403 and "denied the request" not in reason
    ):  # which is what an admission webhook says
        remedy = (
            "let the service account create, get, patch and delete trainjobs.trainer.kubeflow.org, get "
            f"training runtimes, get and list pods, and get pods/log ({ROLE})"
        )
    else:
        remedy = "correct cluster"
    return f"the cluster refuses {what} ({reason}); {remedy}"


def _reason(error: kubernetes.ApiException) -> str:
    """An API error in one line."""
    message = str(error.reason)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        message = json.loads(error.body)["message"]
    return f"{error.status}: {message}"

"""The body of a `TrainJob` of Kubeflow Trainer: the run that its nodes start, and what their pods are given.

Written to the API of Trainer 2.2, in which `runtimePatches` came (kubeflow/trainer v2.2.0,
`pkg/apis/trainer/v1alpha1/trainjob_types.go`). There `pkg/runtime/core/trainingruntime.go` merges the patches
into the runtime's template, and `pkg/runtime/framework/plugins/torch/torch.go` gives the nodes torchrun's
`PET_*` variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calib_components.nodes.job import Job, TrainJobSettings, passed_on
from calib_core.errors import ConfigError

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
ANCESTOR = f"{GROUP}/trainjob-ancestor-step"
NODE = "node"
"""The container of a runtime that trains has this name."""

MANAGER = "calib-core/nodes"
COMMAND = ("python", "-m", "torch.distributed.run", "-m", "calib_core")
"""torchrun, which learns from the environment how many nodes and processes there are, and where they meet."""

SIDECAR = "sidecar.istio.io/inject"
CONFINED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What the images need no more than; namespaces that enforce the pod security standard `restricted` ask for
all of it but the read-only root."""

WORK_FOLDERS: dict[str, dict[str, str]] = {"/scratch": {}, "/tmp": {}}  # noqa: S108 - mounted, in place of the image's own
SHARED_MEMORY = {"/dev/shm": {"medium": "Memory"}}  # noqa: S108


@dataclass(frozen=True, kw_only=True)
class Pod:
    """The pod that this process runs in, and what of it the nodes get as well.

    Attributes:
        name: of the pod.
        uid: of the pod.
        namespace: of the pod.
        account: service account that it runs as.
        environment: variables that it was given: values, and references to secrets and config maps; never
            the content of a secret.
        pull_secrets: secrets that its image is pulled with.
    """

    name: str
    uid: str
    namespace: str
    account: str
    environment: tuple[dict[str, Any], ...] = ()
    pull_secrets: tuple[dict[str, Any], ...] = ()


def train_job_body(
    job: Job, settings: TrainJobSettings, runtime: Mapping[str, Any], *, maker: Pod | None, storage: str = ""
) -> dict[str, Any]:
    """The object to create.

    Args:
        job: what the nodes run.
        settings: of the job.
        runtime: the (cluster) training runtime, as the cluster has it.
        maker: the pod that makes the job, where it is in the job's namespace: the nodes run as its account
            and in its environment, and the job goes when that pod does.
        storage: ephemeral storage of each node ("64Gi"), where `settings` names none.

    Raises:
        ConfigError: the runtime is for another framework, or has no container that trains.
    """
    metadata: dict[str, Any] = {"name": job.name}
    if maker:
        metadata["ownerReferences"] = [owner(maker)]
    resources = _resources(job, settings, storage)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": runtime["kind"], "name": runtime["metadata"]["name"]},
            "activeDeadlineSeconds": settings.timeout_s,
            "trainer": {
                "image": settings.image,
                "command": list(COMMAND),
                # Kubernetes puts variables in place of $(NAME); two signs are one that means nothing.
                "args": [argument.replace("$", "$$") for argument in job.arguments],
                "env": _environment(maker),
                "numNodes": job.nodes,
                "numProcPerNode": job.processes,
                "resourcesPerNode": {"requests": resources, "limits": resources},
            },
            "runtimePatches": [
                {"manager": MANAGER, "trainingRuntimeSpec": _patch(job, settings, runtime, maker)}
            ],
        },
    }


def _environment(maker: Pod | None) -> list[dict[str, Any]]:
    """The maker's variables, and where it is in another namespace, or no pod, what holds for the work."""
    own = list(maker.environment) if maker else []
    known = {variable["name"] for variable in own}
    more = {name: value.replace("$", "$$") for name, value in sorted(passed_on().items())}
    return own + [{"name": name, "value": value} for name, value in more.items() if name not in known]


def owner(pod: Pod) -> dict[str, Any]:
    """The reference that makes a cluster remove an object when this pod is gone."""
    return {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}


def _resources(job: Job, settings: TrainJobSettings, storage: str) -> dict[str, str]:
    asked = {
        "nvidia.com/gpu": str(job.processes) if settings.gpu else "",
        "cpu": settings.cpu or ("" if settings.gpu else str(job.processes)),
        "memory": settings.memory,
        "ephemeral-storage": settings.storage or storage,
    }
    return {name: amount for name, amount in asked.items() if amount}


def _patch(
    job: Job, settings: TrainJobSettings, runtime: Mapping[str, Any], maker: Pod | None
) -> dict[str, Any]:
    """What the nodes' pods get beside the runtime's own; where both say something, the runtime is kept."""
    name, container = _trained_by(runtime)
    mounted = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
    empty = {**WORK_FOLDERS, **(SHARED_MEMORY if job.processes > 1 else {})}
    volumes: dict[str, dict[str, Any]] = {
        path: {"name": "calib" + path.replace("/", "-"), "emptyDir": source}
        for path, source in empty.items()
        if path not in mounted
    }
    if settings.volume:
        claim = {"claimName": settings.volume}
        volumes[settings.mount] = {"name": "calib", "persistentVolumeClaim": claim}
    confined = {
        key: value for key, value in CONFINED.items() if key not in container.get("securityContext", {})
    }
    account = settings.service_account or (maker.account if maker else "")
    pod: dict[str, Any] = {
        "volumes": list(volumes.values()),
        "containers": [
            {
                "name": NODE,
                "volumeMounts": [
                    {"name": volume["name"], "mountPath": path} for path, volume in volumes.items()
                ],
                "securityContext": confined,
            }
        ],
    }
    if account:
        pod["serviceAccountName"] = account
    if maker and maker.pull_secrets:
        pod["imagePullSecrets"] = list(maker.pull_secrets)
    # A mesh's sidecar breaks the nodes' own connections, and never ends: the job would not either.
    without_sidecar = {"labels": {SIDECAR: "false"}, "annotations": {SIDECAR: "false"}}
    template = {"metadata": without_sidecar, "spec": pod}
    return {
        "template": {
            "spec": {"replicatedJobs": [{"name": name, "template": {"spec": {"template": template}}}]}
        }
    }


def _trained_by(runtime: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The name of the runtime's job that trains, and its container."""
    spec, name = runtime["spec"], runtime["metadata"]["name"]
    if "torch" not in spec.get("mlPolicy", {}):
        raise ConfigError(
            f"the training runtime {name} is not for torch (its mlPolicy has no torch), and the nodes are "
            "started by torchrun; name another runtime in cluster, torch-distributed say"
        )
    for job in spec["template"]["spec"]["replicatedJobs"]:
        if job["template"].get("metadata", {}).get("labels", {}).get(ANCESTOR) == "trainer":
            for container in job["template"]["spec"]["template"]["spec"]["containers"]:
                if container["name"] == NODE:
                    return job["name"], container
    raise ConfigError(
        f"the training runtime {name} has no container {NODE!r} in a job labelled {ANCESTOR}: trainer; fix "
        "it, or name another runtime in cluster"
    )

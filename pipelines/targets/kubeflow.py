"""Kubeflow: tasks with requests, GPUs, node selectors, tolerations, secrets by name and mounted claims."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kfp import dsl

from calib_core.models.budget import GIB
from calib_core.settings.checks import ConfigCheck
from calib_core.settings.parameters import parameter
from calib_core.storage.uris import is_remote
from calib_core.training.config import CHECKPOINTS_VARIABLE, IN_OUTPUTS_BUCKET
from calib_pipelines.definitions.platforms import (
    FIRST_PAUSE_S,
    LIGHT_CPU,
    LIGHT_GIB,
    PAUSE_FACTOR,
    ClusterPlatform,
    Kind,
    Settings,
    missing_package,
)

GPU_RESOURCE = "nvidia.com/gpu"
CPUS_PER_GPU = 4
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a mount point
ALL_ATTEMPTS_S = 30 * 24 * 3600
"""How long a task may be tried, from its first attempt's start, where its attempts have no timeout."""
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclass(frozen=True, kw_only=True)
class Spot:
    """How a provider marks its spot nodes: a label, and the taint that goes with it where there is one."""

    key: str
    value: str
    tainted: bool


SPOT = {
    "gke": Spot(key="cloud.google.com/gke-spot", value="true", tainted=True),
    "eks": Spot(key="eks.amazonaws.com/capacityType", value="SPOT", tainted=False),
    "aks": Spot(key="kubernetes.azure.com/scalesetpriority", value="spot", tainted=True),
    "karpenter": Spot(key="karpenter.sh/capacity-type", value="spot", tainted=False),
}

_NAME = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_LABEL = r"(?:[a-z0-9.-]+/)?[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?)?"
_SELECTOR = re.compile(rf"({_LABEL})=({_VALUE})")
_TOLERATION = re.compile(rf"({_LABEL})(?:=({_VALUE}))?:({'|'.join(EFFECTS)})")
_SECRET = re.compile(rf"([A-Za-z_]\w*)=({_NAME})/([-\w.]+)")
_CLAIM = re.compile(rf"({_NAME}):(/[^:\s]*[^:\s/])")
_CPU = re.compile(r"\d+m|\d+(\.\d+)?")
_MEMORY = re.compile(r"(\d+)(Ki|Mi|Gi|Ti|M|G|T)?")
_UNITS: dict[str | None, int] = {
    None: 1,
    **{f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)},
    **{unit: 1000**power for power, unit in enumerate("KMGT", 1)},
}


@dataclass(frozen=True, kw_only=True)
class KubeflowSettings(Settings):
    """Settings of a package for Kubeflow Pipelines."""

    GROUP = "only with --target kubeflow"

    cpu: str = parameter(
        "",
        "CPUs that a task with a model asks for, such as 8 or 500m; 4 for each GPU if left out.",
    )
    memory: str = parameter(
        "",
        "Memory of a task with a model, such as 64Gi; by model_parameters if left out.",
    )
    node_selector: str = parameter("", "Labels that nodes must have, as key=value,key=value.")
    tolerations: str = parameter("", "Taints that tasks tolerate, as key=value:NoSchedule,key:NoExecute.")
    spot: str = parameter(
        "",
        "Run tasks with a model on spot nodes as one of gke, eks, aks or karpenter marks them.",
        choices=("", *SPOT),
    )
    secrets: str = parameter(
        "",
        "Environment variables from secrets of the cluster, as VARIABLE=secret/key,...; names only, the "
        "values are looked up when a task starts.",
    )
    pvc: str = parameter("", "Volume claims to mount in every task, as claim:/path,claim:/path.")
    cache: str = parameter(
        "",
        "Folder on a mounted claim where tasks with a model keep downloads and checkpoints, so that a "
        "retry resumes training; if it is left out, both are lost with the pod (with spot, checkpoints "
        "go to the bucket of the outputs instead).",
    )

    def rules(self, check: ConfigCheck) -> None:
        """What Kubernetes takes, and what goes together."""
        super().rules(check)
        for name, pattern, expected in (
            ("cpu", _CPU, "a number of CPUs such as 8 or 500m"),
            ("memory", _MEMORY, "a quantity such as 64Gi"),
        ):
            check.value(name, _one(pattern), expected)
        for name, pattern, expected in (
            ("node_selector", _SELECTOR, "key=value, more of them after commas"),
            ("tolerations", _TOLERATION, f"key:EFFECT or key=value:EFFECT with one of {', '.join(EFFECTS)}"),
            ("pvc", _CLAIM, "claim:/path"),
        ):
            check.value(name, _list_of(pattern), expected)
        check.that(
            lambda c: all(map(_SECRET.fullmatch, _parts(c.secrets))),
            "`secrets` must be VARIABLE=secret/key, more of them after commas: the names of a secret and of "
            "a key in it, never its value",  # nor is what was given shown: it may be one
        )
        check.finish()
        check.that(
            lambda c: not c.spot or c.retries > 0,
            f"`spot` is {self.spot!r} and `retries` is 0: a task whose node is taken away would end the run; "
            "give `retries=1` or more",
        )
        check.that(
            lambda c: not c.run_records or is_remote(c.run_records) or c.is_mounted(c.run_records),
            f"`run_records` is {self.run_records!r}, which ends with the pod; mount a claim there by `pvc`, "
            "or give a folder in a bucket",
        )
        check.that(
            lambda c: not c.cache or c.is_mounted(c.cache),
            f"`cache` is {self.cache!r}, which ends with the pod; mount a claim there by `pvc`, or leave it "
            "out",
        )
        if self.model_parameters:
            self.check_memory(check)
            needed = self.least_gib()
            where = "beside the GPU" if self.accelerator else "on the CPU"
            check.that(
                lambda c: not c.memory or c.memory_gib() >= needed,
                f"`memory` is {self.memory!r}, but a model of {self.model_parameters} parameters needs "
                f"{needed}Gi {where}; give `memory={needed}Gi` or more, or leave it out",
            )

    def is_mounted(self, path: str) -> bool:
        """Whether `path` lies on a mounted claim."""
        return any(path == at or path.startswith(f"{at}/") for _, at in self.claims())

    def memory_gib(self) -> float:
        """The memory that was asked for, in GiB."""
        found = _MEMORY.fullmatch(self.memory)
        return float(found[1]) * _UNITS[found[2]] / GIB if found else 0.0

    def claims(self) -> Iterator[tuple[str, str]]:
        """Claims with the paths that they are mounted at."""
        for part in _parts(self.pvc):
            claim, _, path = part.partition(":")
            yield claim, path


class Kubeflow(ClusterPlatform):
    """Places tasks on Kubeflow Pipelines; what is Kubernetes' own goes in through `kfp-kubernetes`."""

    settings: KubeflowSettings

    def __init__(self, settings: KubeflowSettings) -> None:
        super().__init__(settings)
        try:
            from kfp import kubernetes  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise missing_package("kubeflow", "kfp-kubernetes") from error
        self._kubernetes = kubernetes

    def backoff_limit_s(self) -> int:
        """The time for all attempts together.

        KFP's backend hands it to Argo as `maxDuration`, which counts from the start of the first attempt:
        nothing is tried again after it, and an attempt that still runs then is stopped.
        """
        settings = self.settings
        pauses_s = FIRST_PAUSE_S * (PAUSE_FACTOR**settings.retries - 1)
        attempts_s = (settings.retries + 1) * settings.timeout_hours * 3600
        return max(ALL_ATTEMPTS_S, round(attempts_s + pauses_s))

    def set_up(self, task: dsl.PipelineTask, kind: Kind) -> None:
        """Give a task its claims, secrets and tolerations, and one with a model its hardware."""
        super().set_up(task, kind)
        for claim, path in self.settings.claims():
            self._kubernetes.mount_pvc(task, claim, path)
        if kind.outside:
            for part in _parts(self.settings.secrets):
                variable, secret, key = _groups(_SECRET, part, 1, 2, 3)
                self._kubernetes.use_secret_as_env(task, secret, {key: variable})
        for part in _parts(self.settings.tolerations):
            key, value, effect = _groups(_TOLERATION, part, 1, 2, 3)
            self._tolerate(task, key, value, effect)
        if kind.work is None:
            task.set_cpu_request(LIGHT_CPU).set_memory_request(f"{LIGHT_GIB}Gi")
            task.set_memory_limit(f"{LIGHT_GIB}Gi")
            return
        self._set_hardware(task, kind)

    def _set_hardware(self, task: dsl.PipelineTask, kind: Kind) -> None:
        """What only tasks with a model get: the large nodes, and how long they may be held."""
        settings = self.settings
        task.set_cpu_request(settings.cpu or str(CPUS_PER_GPU * settings.count))
        memory = settings.memory
        if not memory and settings.model_parameters and kind.work:
            memory = f"{settings.host_gib(kind.work)}Gi"
        if memory:
            task.set_memory_request(memory)
            task.set_memory_limit(memory)
        if settings.accelerator:
            task.set_accelerator_type(GPU_RESOURCE).set_accelerator_limit(settings.count)
        for part in _parts(settings.node_selector):
            self._kubernetes.add_node_selector(task, *_groups(_SELECTOR, part, 1, 2))
        if settings.spot:
            spot = SPOT[settings.spot]
            self._kubernetes.add_node_selector(task, spot.key, spot.value)
            if spot.tainted:
                self._tolerate(task, spot.key, spot.value, "NoSchedule")
        if settings.cache:
            task.set_env_variable("CALIB_CACHE", f"{settings.cache}/calib")
            task.set_env_variable("HF_HOME", f"{settings.cache}/huggingface")
        elif settings.spot and kind.work == "lora":
            task.set_env_variable(CHECKPOINTS_VARIABLE, IN_OUTPUTS_BUCKET)
        if kind.work == "lora":  # processes of one machine talk by shared memory, of which a pod has 64 MiB
            self._kubernetes.empty_dir_mount(task, "shared-memory", SHARED_MEMORY, medium="Memory")
        if settings.timeout_hours:
            self._kubernetes.set_timeout(task, round(settings.timeout_hours * 3600))

    def _tolerate(self, task: dsl.PipelineTask, key: str, value: str, effect: str) -> None:
        if value:
            self._kubernetes.add_toleration(task, key=key, operator="Equal", value=value, effect=effect)
        else:
            self._kubernetes.add_toleration(task, key=key, operator="Exists", effect=effect)


def _one(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: not text or bool(pattern.fullmatch(text))


def _list_of(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: all(map(pattern.fullmatch, _parts(text)))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _groups(pattern: re.Pattern[str], text: str, *numbers: int) -> tuple[str, ...]:
    """Groups of a match that the settings' own check has seen to be one."""
    found = pattern.fullmatch(text)
    return tuple((found[number] or "") if found else "" for number in numbers)

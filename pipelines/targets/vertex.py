"""Vertex AI: tasks with a model as custom jobs of their own, nothing of Kubernetes anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from calib_core.models.budget import parse_parameters
from calib_core.settings.checks import ConfigCheck
from calib_core.settings.parameters import parameter
from calib_core.training.config import CHECKPOINTS_VARIABLE, IN_OUTPUTS_BUCKET
from calib_pipelines.definitions.platforms import (
    ACCELERATORS,
    LIGHT_CPU,
    LIGHT_GIB,
    ClusterPlatform,
    Kind,
    Settings,
    missing_package,
)

DISKS = ("pd-ssd", "pd-standard", "hyperdisk-balanced")
STRATEGIES = ("STANDARD", "SPOT", "FLEX_START")
QUEUED = ("nvidia-l4", "nvidia-tesla-a100", "nvidia-a100-80gb", "nvidia-h100-80gb", "nvidia-h200-141gb")
"""Accelerators that a job can wait for in a queue (`FLEX_START`)."""
LONGEST_QUEUED_HOURS = 7 * 24
DEFAULT_TIMEOUT_HOURS = 7 * 24
IMAGE_DISK_GB = 40
USABLE = 0.9
"""Share of a machine's memory that is left for the container."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine type.

    Attributes:
        cpus: virtual CPUs.
        gib: memory.
        gpus: how many of which accelerators it can have; none, and any number but these, are refused.
        optional: whether it also comes without any.
    """

    cpus: int
    gib: float
    gpus: dict[str, tuple[int, ...]]
    optional: bool = True


def _machines() -> dict[str, Machine]:
    """Machine types of custom training that models fit on, as Google documents them."""
    found: dict[str, Machine] = {}
    for series, each, sizes in (
        ("e2-standard", 4, (4, 8, 16, 32)),
        ("e2-highmem", 8, (4, 8, 16)),
        ("n2-standard", 4, (4, 8, 16, 32, 48, 64, 80)),
        ("n2-highmem", 8, (4, 8, 16, 32, 48, 64, 80)),
    ):
        found |= {f"{series}-{n}": Machine(cpus=n, gib=n * each, gpus={}) for n in sizes}
    for series, gib in (("n1-standard", 3.75), ("n1-highmem", 6.5)):
        for n in (4, 8, 16, 32, 64, 96):
            gpus = {
                "nvidia-tesla-t4": tuple(k for k, most in ((1, 32), (2, 32), (4, 96)) if n <= most),
                "nvidia-tesla-v100": tuple(k for k, most in ((1, 8), (2, 16), (4, 32), (8, 96)) if n <= most),
            }
            found[f"{series}-{n}"] = Machine(cpus=n, gib=n * gib, gpus=gpus)
    for n, count in ((4, 1), (8, 1), (12, 1), (16, 1), (24, 2), (32, 1), (48, 4), (96, 8)):
        found[f"g2-standard-{n}"] = _fixed(n, 4 * n, "nvidia-l4", count)
    for count in (1, 2, 4, 8):
        found[f"a2-highgpu-{count}g"] = _fixed(12 * count, 85 * count, "nvidia-tesla-a100", count)
        found[f"a2-ultragpu-{count}g"] = _fixed(12 * count, 170 * count, "nvidia-a100-80gb", count)
        found[f"a3-highgpu-{count}g"] = _fixed(26 * count, 234 * count, "nvidia-h100-80gb", count)
    found["a2-megagpu-16g"] = _fixed(96, 1360, "nvidia-tesla-a100", 16)
    found["a3-megagpu-8g"] = _fixed(208, 1872, "nvidia-h100-mega-80gb", 8)
    found["a3-ultragpu-8g"] = _fixed(224, 2952, "nvidia-h200-141gb", 8)
    return found


def _fixed(cpus: int, gib: float, accelerator: str, count: int) -> Machine:
    return Machine(cpus=cpus, gib=gib, gpus={accelerator: (count,)}, optional=False)


MACHINES = _machines()

FORMS = {
    "service_account": (r"[\w.-]+@[\w.-]+\.gserviceaccount\.com", "NAME@PROJECT.iam.gserviceaccount.com"),
    "network": (r"projects/\d+/global/networks/[a-z][-a-z0-9]*", "projects/NUMBER/global/networks/NAME"),
    "run_records": (r"gs://.+|/gcs/.+", "a folder in a bucket: gs://bucket/folder or /gcs/bucket/folder"),
}
"""How texts must look, and how to say it."""


@dataclass(frozen=True, kw_only=True)
class VertexSettings(Settings):
    """Settings of a package for Vertex AI Pipelines."""

    GROUP = "only with --target vertex"

    machine_type: str = parameter(
        "",
        "Machine of the tasks that load a model, such as g2-standard-12; the smallest one that fits "
        "if left out.",
        choices=("", *MACHINES),
    )
    service_account: str = parameter("", "E-mail address of the account that these tasks run as.")
    network: str = parameter(
        "",
        "Network that they are peered with, as projects/NUMBER/global/networks/NAME.",
    )
    strategy: str = parameter(
        "STANDARD",
        "How their machines are provisioned: STANDARD, SPOT (cheaper, can be taken away) or FLEX_START "
        "(waits in a queue for GPUs).",
        choices=STRATEGIES,
    )
    max_wait_hours: float = parameter(
        24.0,
        "Longest time to wait for the machines with FLEX_START; 0 for no limit.",
        at_least=0,
    )
    boot_disk_type: str = parameter(
        "",
        "Type of the boot disk: pd-ssd, pd-standard or hyperdisk-balanced; the one that the machine "
        "takes if left out.",
        choices=("", *DISKS),
    )
    boot_disk_gb: int = parameter(
        100, "Size of the boot disk, which also holds the model's files.", at_least=100, at_most=64000
    )

    def rules(self, check: ConfigCheck) -> None:
        """What Vertex takes, and what goes together."""
        super().rules(check)
        for name, (pattern, expected) in FORMS.items():
            check.value(name, _spelled(pattern), expected)
        check.finish()
        self._check_strategy(check)
        self.check_memory(check)
        self._check_machine(check)

    def _check_strategy(self, check: ConfigCheck) -> None:
        check.that(
            lambda c: c.strategy != "FLEX_START" or c.accelerator in QUEUED,
            f"`strategy` is 'FLEX_START' with `accelerator` {self.accelerator!r}; the queue is for "
            f"{', '.join(QUEUED)}",
        )
        check.that(
            lambda c: c.strategy != "FLEX_START" or c.timeout_hours <= LONGEST_QUEUED_HOURS,
            f"`timeout_hours` is {self.timeout_hours!r}; with `strategy=FLEX_START` give "
            f"{LONGEST_QUEUED_HOURS} or less",
        )
        check.that(
            lambda c: c.strategy == "FLEX_START" or c.max_wait_hours == VertexSettings.max_wait_hours,
            f"`max_wait_hours` is {self.max_wait_hours!r}, but `strategy` {self.strategy!r} doesn't wait; "
            "use it with `strategy=FLEX_START`",
        )
        check.that(
            lambda c: c.strategy != "SPOT" or c.retries > 0,
            "`strategy` is 'SPOT' and `retries` is 0: a task whose machine is taken away would end the run; "
            "give `retries=1` or more",
        )

    def _check_machine(self, check: ConfigCheck) -> None:
        fitting = self.fitting()
        given = (
            f"`machine_type` {self.machine_type!r} does not go" if self.machine_type else "no machine goes"
        )
        asked = f"{self.count} x {self.accelerator}" if self.accelerator else "no accelerator"
        needs = f" and {self.least_gib()} GiB of memory" if self.model_parameters else ""
        counts = sorted({n for m in MACHINES.values() for n in m.gpus.get(self.accelerator, ())})
        check.that(
            lambda c: c.machine_type in fitting if c.machine_type else bool(fitting),
            f"{given} with {asked}{needs}; "
            + (
                f"these do: {', '.join(fitting)}"
                if fitting
                else f"of {self.accelerator} there are machines with {', '.join(map(str, counts))}"
                if counts
                else "add an accelerator, or give a smaller model"
            ),
        )
        if self.model_parameters:
            needed = round(IMAGE_DISK_GB + 2 * 2 * parse_parameters(self.model_parameters) / 1e9)
            check.that(
                lambda c: c.boot_disk_gb >= needed,
                f"`boot_disk_gb` is {self.boot_disk_gb}, but the image and the files of a model of "
                f"{self.model_parameters} parameters need {needed}; give {needed} or more",
            )
        machine = self.machine()
        disks = _disks(machine)
        check.that(
            lambda c: not c.boot_disk_type or c.boot_disk_type in disks,
            f"`boot_disk_type` {self.boot_disk_type!r} is not for {machine}; give {' or '.join(disks)}",
        )

    def fitting(self) -> list[str]:
        """Machine types that take the accelerators and hold the model, the smallest first."""
        needed = self.least_gib() if self.model_parameters else 0
        names = [
            name
            for name, machine in MACHINES.items()
            if machine.gib * USABLE >= needed
            and (
                self.count in machine.gpus.get(self.accelerator, ()) if self.accelerator else machine.optional
            )
        ]
        return sorted(names, key=lambda name: (MACHINES[name].gib, MACHINES[name].cpus, name))

    def machine(self) -> str:
        """The machine type that was asked for, or the smallest that fits; empty if none does.

        Without a GPU memory decides how many questions go into a step: the default's are to fit, if they can.
        """
        if self.machine_type:
            return self.machine_type
        fitting = self.fitting()
        wanted = max(self.host_gib("scoring"), self.host_gib("lora")) if self.model_parameters else 0
        roomy = [name for name in fitting if MACHINES[name].gib * USABLE >= wanted]
        return next(iter(roomy or fitting), "")

    def disk(self) -> str:
        """The boot disk's type."""
        return self.boot_disk_type or _disks(self.machine())[0]


def _spelled(pattern: str) -> Callable[[str], bool]:
    return lambda text: not text or bool(re.fullmatch(pattern, text))


def _disks(machine: str) -> tuple[str, ...]:
    """Types of boot disk that a machine takes, the usual one first."""
    return ("hyperdisk-balanced",) if machine.startswith("a3-ultragpu") else ("pd-ssd", "pd-standard")


class Vertex(ClusterPlatform):
    """Places tasks on Vertex AI Pipelines; those with a model become custom jobs."""

    settings: VertexSettings

    def __init__(self, settings: VertexSettings) -> None:
        super().__init__(settings)
        try:
            from google_cloud_pipeline_components.v1 import custom_job  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise missing_package("vertex", "google-cloud-pipeline-components") from error
        self._wrap = custom_job.create_custom_training_job_from_component

    def component(self, component: BaseComponent, kind: Kind) -> BaseComponent:
        """A custom job around a component that loads a model; any other as it is."""
        if kind.work is None:
            return component
        settings = self.settings
        gpu = ACCELERATORS[settings.accelerator].vertex if settings.accelerator else ""
        wrapped: BaseComponent = self._wrap(
            component,
            display_name=component.name,
            machine_type=settings.machine(),
            accelerator_type=gpu,
            accelerator_count=settings.count,
            boot_disk_type=settings.disk(),
            boot_disk_size_gb=settings.boot_disk_gb,
            timeout=f"{round((settings.timeout_hours or DEFAULT_TIMEOUT_HOURS) * 3600)}s",
            service_account=settings.service_account,
            network=settings.network,
            strategy=settings.strategy,
            max_wait_duration=f"{round(settings.max_wait_hours * 3600)}s",
            env=[{"name": CHECKPOINTS_VARIABLE, "value": IN_OUTPUTS_BUCKET}]
            if settings.strategy == "SPOT" and kind.work == "lora"
            else None,
        )
        return wrapped

    def set_up(self, task: dsl.PipelineTask, kind: Kind) -> None:
        """Limit what a task without a model takes; custom jobs have their machine."""
        super().set_up(task, kind)
        if kind.work is None:
            task.set_cpu_limit(LIGHT_CPU).set_memory_limit(f"{LIGHT_GIB}G")

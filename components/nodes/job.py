"""A job on several machines: what it runs, where its files lie, and what each platform needs to know."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from calib_components.image import IMAGE
from calib_core.errors import CalibError
from calib_core.runtime.messages import QUIET_VARIABLE
from calib_core.settings.checks import ConfigCheck
from calib_core.settings.flags import flags_of
from calib_core.settings.parameters import config_from, parameter
from calib_core.storage.files import sha256_json
from calib_core.storage.limits import Limit
from calib_core.training.config import CHECKPOINTS_VARIABLE, FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class JobConfig(FinetuneConfig):
    """Parameters of fine-tuning, and of the machines that it takes place on."""

    GROUP = "machines"

    nodes: int = parameter(
        1,
        "Number of machines; several are started as a job on the cluster that `cluster` describes.",
        at_least=1,
    )
    cluster: str = parameter(
        "", "JSON object that describes the job on several machines; see docs/distributed.md."
    )

    def training(self) -> FinetuneConfig:
        """The parameters of fine-tuning alone."""
        return config_from(FinetuneConfig, vars(self))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something lies: the path that this process sees, and the URI that others know.

    Attributes:
        path: of a file or folder of this machine, or a hub id.
        uri: `gs://...`, or the path again.
    """

    path: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run on several machines, whatever platform it is for.

    Attributes:
        name: the same for the same run, so that a retried task finds the job that it had made.
        arguments: the command of `calib_core` and its flags.
        nodes: machines.
        processes: on each of them.
    """

    name: str
    arguments: tuple[str, ...]
    nodes: int
    processes: int


@dataclass(frozen=True, kw_only=True)
class TrainJobSettings:
    """`cluster` for Kubeflow: `{"platform": "kubeflow", ...}`.

    Attributes:
        image: image of the nodes; this component's own if left out.
        runtime: a training runtime of the framework torch.
        namespace: of the job; this pod's own if left out.
        volume: claim that the nodes mount, where model, data and adapter are not in a bucket.
        mount: path of that volume, on the nodes and here.
        service_account: that the nodes run as; this pod's own if left out.
        gpu: whether each process has a GPU; without, each has a CPU.
        cpu: CPUs of each node, as Kubernetes writes them ("8").
        memory: of each node ("64Gi").
        storage: ephemeral storage of each node ("64Gi"); by the model's size if left out.
        timeout_s: seconds after which the job is given up.
    """

    image: str = IMAGE
    runtime: str = "torch-distributed"
    namespace: str = ""
    volume: str = ""
    mount: str = "/mnt/calib"
    service_account: str = ""
    gpu: bool = True
    cpu: str = ""
    memory: str = ""
    storage: str = ""
    timeout_s: int = 86_400

    def __post_init__(self) -> None:
        check = ConfigCheck(self)
        check.value("mount", lambda path: path.startswith("/"), "an absolute path")
        check.value("timeout_s", lambda seconds: seconds >= 1, "1 or more")
        for name in ("image", "runtime"):
            check.value(name, bool, "a name")
        check.finish()


@dataclass(frozen=True, kw_only=True)
class CustomJobSettings:
    """`cluster` for Vertex: `{"platform": "vertex", ...}`.

    Attributes:
        project: of the job.
        region: of the job, `europe-west4` say.
        staging_bucket: `gs://...`, which the client library asks for.
        machine_type: of every node.
        accelerator_type: GPU of every node, one for each process; "" for none.
        image: image of the nodes, in a registry that Vertex reads; this component's own if left out.
        service_account: that the nodes run as; the project's default if left out.
        network: full name of a peered network; none if left out.
        timeout_s: seconds after which the job is given up.
    """

    project: str
    region: str
    staging_bucket: str
    machine_type: str = "a2-highgpu-1g"
    accelerator_type: str = "NVIDIA_TESLA_A100"
    image: str = IMAGE
    service_account: str = ""
    network: str = ""
    timeout_s: int = 86_400

    def __post_init__(self) -> None:
        check = ConfigCheck(self)
        check.value("staging_bucket", lambda uri: uri.startswith("gs://"), "a bucket as gs://name")
        check.value("timeout_s", lambda seconds: seconds >= 1, "1 or more")
        for name in ("project", "region", "machine_type"):
            check.value(name, bool, "a name")
        check.finish()


def job_of(method: str, config: JobConfig, uris: Mapping[str, str], places: Mapping[str, str]) -> Job:
    """The run of `calib_core` that every node starts.

    Args:
        method: `cft` or `rcft`.
        config: parameters of the run.
        uris: `model`, `data` and `adapter`, as the pipeline names them; they name the job.
        places: the same where the nodes find them.
    """
    flags = flags_of(config.training())
    name = f"calib-{method}-{sha256_json([method, flags, config.nodes, dict(uris)])[:12]}"
    where = (f"--model={places['model']}", f"--data={places['data']}", f"--out={places['adapter']}")
    return Job(name=name, arguments=(method, *where, *flags), nodes=config.nodes, processes=config.processes)


def out_of_time(name: str) -> CalibError:
    """The error of a job that has not ended within `timeout_s` of its settings."""
    return CalibError(
        f"the job {name} has not ended in time; raise timeout_s in cluster, or give it more nodes"
    )


def passed_on() -> dict[str, str]:
    """Variables of this process that hold for the work itself, so that they hold on each node too."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in (CHECKPOINTS_VARIABLE, QUIET_VARIABLE) or name.startswith(Limit.PREFIX)
    }


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """Within the block SIGTERM, with which a pod is ended, raises as Ctrl-C does: a job is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

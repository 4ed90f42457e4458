"""Fine-tuning where it was asked for: in this process, in several of this machine, or on several machines.

Several machines are a Kubeflow `TrainJob` or a Vertex custom job, which runs the same image and the same
command (`python -m calib_core cft ...`) under torchrun on every node; this process makes the job, watches it,
and removes it again. `docs/distributed.md` describes the parameter `cluster`.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from calib_components.image import IMAGE
from calib_core.errors import ConfigError
from calib_core.settings.checks import ConfigCheck
from calib_core.settings.parameters import flags_of
from calib_core.steps.finetune import FinetuneConfig, cft, rcft
from calib_core.storage.files import sha256_json

METHODS = {"cft": cft, "rcft": rcft}


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
class KubeflowSettings:
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
class VertexSettings:
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


PLATFORMS: dict[str, type] = {"kubeflow": KubeflowSettings, "vertex": VertexSettings}


def finetune(method: str, config: FinetuneConfig, *, model: Place, data: Place, adapter: Place) -> None:
    """Fine-tune a model and leave the adapter at its place.

    Args:
        method: `cft` or `rcft`.
        config: parameters of the run; with `nodes` above 1 a job on a cluster does it.
        model: the model to train.
        data: data folder of `data_prep`.
        adapter: adapter folder to write.

    Raises:
        CalibError: as `calib_core.steps.finetune` says, or the job could not be made, or failed.
    """
    if config.nodes == 1:
        METHODS[method](config, model.path, Path(data.path), Path(adapter.path))
        return
    settings = read_settings(config.cluster)
    places = {"model": model, "data": data, "adapter": adapter}
    try:
        if isinstance(settings, KubeflowSettings):
            from calib_components.nodes.kubeflow import train_job  # noqa: PLC0415 - only where asked for

            train_job(method, config, settings, **places)
        else:
            from calib_components.nodes.vertex import custom_job  # noqa: PLC0415

            custom_job(method, config, settings, **places)
    except ModuleNotFoundError as error:
        extra = "kubeflow" if isinstance(settings, KubeflowSettings) else "vertex"
        raise ConfigError(
            f"a job on several machines needs the package {error.name}; install 'calib-core[{extra}]'"
        ) from error


def read_settings(cluster: str) -> KubeflowSettings | VertexSettings:
    """The parameter `cluster` as settings of its platform.

    Raises:
        ConfigError: it is no JSON object, names no platform, or has names or values that are not allowed.
    """
    example = """'{"platform": "kubeflow", "volume": "my-claim"}'"""
    try:
        given = json.loads(cluster)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"cluster is {cluster!r}, which is no JSON ({error}); with nodes above 1 give, say, {example}"
        ) from None
    platform = given.pop("platform", None) if isinstance(given, dict) else None
    if platform not in PLATFORMS:
        raise ConfigError(
            f"cluster is {cluster!r}; give a JSON object whose platform is one of "
            f"{', '.join(PLATFORMS)}: {example}"
        )
    kind = PLATFORMS[platform]
    names = [field.name for field in fields(kind)]
    if unknown := sorted(set(given) - set(names)):
        raise ConfigError(
            f"cluster: no setting {', '.join(unknown)} for {platform}; there are {', '.join(names)}"
        )
    try:
        settings: KubeflowSettings | VertexSettings = kind(**given)
    except TypeError:
        missing = [field.name for field in fields(kind) if field.name not in given and _required(field)]
        raise ConfigError(f"cluster: {', '.join(missing)} missing for {platform}; give them") from None
    return settings


def job_of(method: str, config: FinetuneConfig, uris: Mapping[str, str], places: Mapping[str, str]) -> Job:
    """The run of `calib_core` that every node starts.

    Args:
        method: `cft` or `rcft`.
        config: parameters of the run.
        uris: `model`, `data` and `adapter`, as the pipeline names them; they name the job.
        places: the same where the nodes find them.
    """
    flags = flags_of(replace(config, cluster=""))  # which says where the nodes are: they know
    name = f"calib-{method}-{sha256_json([method, flags, dict(uris)])[:12]}"
    where = (f"--model={places['model']}", f"--data={places['data']}", f"--out={places['adapter']}")
    return Job(name=name, arguments=(method, *where, *flags), nodes=config.nodes, processes=config.processes)


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


def _required(field: Any) -> bool:
    return field.default is MISSING

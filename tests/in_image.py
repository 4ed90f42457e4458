"""An image at work. `make test-images` runs this file; a plain `pytest` does not collect it.

Needs a Docker engine, and the image that `make images` built, or the one that `CALIB_IMAGE` names.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest
import real
from docker.errors import ContainerError
from kfp import local

from calib_components.image import IMAGE
from calib_components.nodes.job import job_of
from calib_components.nodes.trainjob import COMMAND
from calib_core.errors import CalibError
from calib_core.storage.files import read_json
from calib_core.version import __version__
from calib_pipelines.run.local import run_local

UID = 10001
LIMIT_BYTES = 4 * 2**30
SIZE_BYTES = 6e9 if IMAGE.endswith("-cuda") else 1.6e9

CONFINED = {  # what a strict cluster allows: no network, nothing to write to but a work folder, no privileges
    "network_mode": "none",
    "read_only": True,
    "tmpfs": {"/scratch": "mode=1777"},
    "mem_limit": LIMIT_BYTES,
    "memswap_limit": LIMIT_BYTES,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "environment": {"HF_HUB_OFFLINE": "1"},
}


@pytest.fixture(scope="module")
def client():
    with contextlib.closing(docker.from_env()) as client:
        yield client


@pytest.fixture(scope="module")
def image(client):
    return client.images.get(IMAGE)


@pytest.fixture
def shell(client, image):
    """Runs a shell command in a confined container and returns what it printed."""

    def run(command: str, **options: object) -> str:
        given = {**CONFINED, **options}
        return client.containers.run(
            image, ["sh", "-ec", command], remove=True, stderr=True, **given
        ).decode()

    return run


@contextlib.contextmanager
def writable(client, folder: Path) -> Iterator[None]:
    """Lets the image's user, who is nobody on this machine, write into a folder, and pytest delete it."""
    folder.chmod(0o777)
    try:
        yield
    finally:
        if os.getuid() != 0:  # what that user wrote, only that user may delete
            opened = {str(folder): {"bind": str(folder), "mode": "rw"}}
            command = ["find", str(folder), "-user", str(UID), "-exec", "chmod", "a+rwX", "{}", "+"]
            client.containers.run(IMAGE, command, remove=True, volumes=opened)


def run_in_image(client, parameters: dict[str, object], out: Path, *, readable: dict[str, Path]) -> dict:
    """The compiled pipeline, each task in a confined container that may read what is in `readable`.

    Its keys are paths in the containers, its values where that lies on this machine.
    """
    results = out / "run"
    results.mkdir(parents=True)
    mounts = [
        docker.types.Mount(there, str(here), "bind", read_only=True) for there, here in readable.items()
    ]
    with writable(client, results):
        return run_local(parameters, out, runner=local.DockerRunner(mounts=mounts, **CONFINED))


@pytest.fixture(scope="module")
def run(client, image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    inputs, out = folder / "inputs", folder / "out"
    inputs.mkdir()
    parameters = real.small_run(inputs)
    # The cache may be below /root, which in the image is closed to all but root: mounted elsewhere.
    readable = {str(inputs): inputs, "/models/smollm2": Path(parameters["model"])}
    return run_in_image(client, {**parameters, "model": "/models/smollm2"}, out, readable=readable), out


@real.needs_weights
def test_whole_pipeline_repairs_the_real_model_offline_in_4_gib(run):
    real.assert_repaired(*run)
    real.assert_adapter_with_record(*run)
    assert (run[1] / "report.html").is_file()


@real.needs_weights
def test_every_task_wrote_as_the_images_user(run):
    _, out = run
    files = [path for path in (out / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_uid for path in files} == {UID}
    assert {path.parent.name for path in files} >= {
        "data-prep",
        "dpo-align",
        "evaluate",
        "cft-finetune",
        "promote",
    }


def test_users_mistake_in_a_container_is_told_as_in_a_process(client, image, tmp_path):
    absent = tmp_path / "absent.jsonl"
    with pytest.raises(CalibError, match=re.escape(str(absent))) as caught:
        run_in_image(client, {"model": "/m", "questions": str(absent)}, tmp_path / "out", readable={})
    assert caught.value.exit_code == 2


def test_two_nodes_train_together_in_containers(client, image, tiny_llama, tmp_path):
    """The command that a `TrainJob` gives its nodes, in a confined container for each."""
    from test_steps import FINETUNE, prepared

    work = tmp_path / "work"
    places = {name: f"/workspace/{name}" for name in ("model", "data", "adapter")}
    job = job_of("cft", replace(FINETUNE, nodes=2), places, places)
    shutil.copytree(tiny_llama, work / "model")
    shutil.copytree(prepared(tmp_path, pairs=False), work / "data")
    for path in work.rglob("*"):  # safetensors writes files that only their owner can read
        path.chmod(0o755 if path.is_dir() else 0o644)
    network = client.networks.create(f"calib-{uuid.uuid4().hex[:8]}", internal=True)
    confined = {**CONFINED, "network_mode": network.name}
    meet = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_PORT": "29500"}
    running = []
    try:
        with writable(client, work):
            for rank in range(2):
                first = running[0].name if running else f"{network.name}-0"
                own = {**meet, "PET_NODE_RANK": str(rank), "PET_MASTER_ADDR": first}
                confined["environment"] = {"HF_HUB_OFFLINE": "1", **own}
                running.append(
                    client.containers.run(
                        image,
                        [*COMMAND, *job.arguments],
                        name=f"{network.name}-{rank}",
                        detach=True,
                        volumes={str(work): {"bind": "/workspace", "mode": "rw"}},
                        **confined,
                    )
                )
            ends = [container.wait(timeout=300)["StatusCode"] for container in running]
        assert ends == [0, 0], [container.logs(tail=20).decode() for container in running]
    finally:
        for container in running:
            container.remove(force=True)
        network.remove()
    assert read_json(work / "adapter" / "calibration.json")["parameters"]["nodes"] == 2


def test_image_is_labelled_small_and_not_roots(image):
    labels = image.labels
    assert labels["org.opencontainers.image.version"] == __version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])
    assert image.attrs["Config"]["User"] == f"{UID}:{UID}"
    assert not image.attrs["Config"]["Entrypoint"]
    assert image.attrs["Size"] <= SIZE_BYTES


def test_no_compiler_and_no_cache_is_left_inside(shell):
    compilers = "cc gcc g++ c++ clang ld make nvcc"
    assert shell(f"for name in {compilers}; do command -v $name || true; done") == ""
    assert shell("find / -xdev -path '*/.cache/*' -not -path '/proc/*' 2>/dev/null | head -3") == ""


def test_temporary_and_home_folders_are_the_work_folder(shell):
    code = "import pathlib, tempfile; print(tempfile.gettempdir(), pathlib.Path.home())"
    assert shell(f"id -u; python3 -c '{code}'; mktemp -d").splitlines()[:2] == [str(UID), "/scratch /scratch"]


def test_any_other_user_may_run_it_too(shell):
    code = "import getpass, torch, transformers, kfp, calib_components; print(getpass.getuser())"
    assert shell(f"mktemp -d; python3 -c '{code}'", user="1234567:0").splitlines()[-1] == "calib"


def test_hub_is_not_asked_where_it_is_switched_off(shell):
    command = "from calib_core.models.files import resolve; resolve('owner/name')"
    with pytest.raises(ContainerError, match="outgoing traffic has been disabled"):
        shell(f'python3 -c "{command}"')

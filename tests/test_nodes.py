"""Jobs on several machines: Kubeflow's TrainJob, against an API on loopback and as local processes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("kubeflow.trainer")

from kubeflow.trainer import CustomTrainer, LocalProcessBackendConfig, TrainerClient
from kubernetes_api import JOBS, NAMESPACE, Cluster, serving, write_kubeconfig

import calib_core
from calib_components.image import IMAGE
from calib_components.nodes import kubeflow as nodes_kubeflow
from calib_components.nodes import nodes
from calib_components.nodes import replica as vertex_node
from calib_components.nodes.nodes import KubeflowSettings, Place, finetune, read_settings
from calib_core.commands.library import add_commands
from calib_core.errors import CalibError, ConfigError
from calib_core.settings.parameters import config_from
from calib_core.training.config import FinetuneConfig

pytestmark = pytest.mark.slow  # jobs are polled, a second each

CONFIG = FinetuneConfig(nodes=2, processes=2, epochs=3, cluster='{"platform": "kubeflow"}')
PLACES = {
    name: Place(path=f"/kfp/{name}", uri=f"gs://bucket/{name}") for name in ("model", "data", "adapter")
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster on loopback, which the environment names."""
    monkeypatch.setattr(nodes_kubeflow, "POLL_S", 0.02)
    monkeypatch.setattr(nodes_kubeflow.run_job, "__kwdefaults__", {"options": (), "poll_s": 0.02})
    monkeypatch.setattr(nodes_kubeflow, "LOST_POLLS", 3)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    made = Cluster()
    with serving(made, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        # The SDK reads the namespace of its own accord, from the file that was named when it was imported.
        monkeypatch.setattr(
            "kubeflow.common.utils.get_default_target_namespace", lambda context=None: NAMESPACE
        )
        yield made


def train(config: FinetuneConfig = CONFIG, **places: Place) -> None:
    finetune("cft", config, **{**PLACES, **places})


def test_a_job_is_made_watched_and_removed(cluster, capsys) -> None:
    train()
    (job,) = cluster.created
    assert job["spec"]["runtimeRef"] == {"name": "torch-distributed", "kind": "ClusterTrainingRuntime"}
    trainer = job["spec"]["trainer"]
    assert trainer["numNodes"] == 2
    assert trainer["image"] == IMAGE
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "2"}
    assert cluster.jobs == {}
    assert cluster.count(f"DELETE {JOBS}") == 1
    assert f"job {job['metadata']['name']}: Complete" in capsys.readouterr().err


def test_the_nodes_are_told_the_same_run(cluster) -> None:
    train()
    (variable,) = cluster.created[0]["spec"]["trainer"]["env"]
    arguments = json.loads(variable["value"])
    assert variable["name"] == "CALIB_ARGUMENTS"
    commands = argparse.ArgumentParser().add_subparsers()
    add_commands(commands)
    given = commands.choices[arguments[0]].parse_args(arguments[1:])
    assert (given.model, arguments[0]) == ("gs://bucket/model", "cft")
    assert {"--data=gs://bucket/data", "--out=gs://bucket/adapter"} <= set(arguments)
    assert config_from(FinetuneConfig, vars(given)) == replace(CONFIG, cluster="")


def test_settings_reach_the_job(cluster, tmp_path) -> None:
    settings = {
        "image": "r/calib:7",
        "volume": "claim",
        "mount": str(tmp_path),
        "gpu": False,
        "memory": "64Gi",
    }
    train(replace(CONFIG, cluster=json.dumps({"platform": "kubeflow", **settings})))
    spec = cluster.created[0]["spec"]
    assert spec["trainer"]["image"] == "r/calib:7"
    assert spec["trainer"]["resourcesPerNode"]["requests"] == {"cpu": "2", "memory": "64Gi"}
    patch = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = patch["template"]["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "calib", "persistentVolumeClaim": {"claimName": "claim"}}]
    assert pod["containers"] == [
        {"name": "node", "volumeMounts": [{"name": "calib", "mountPath": str(tmp_path)}]}
    ]


def test_without_a_bucket_everything_goes_over_the_volume(cluster, tmp_path) -> None:
    volume, local = tmp_path / "volume", tmp_path / "local"
    volume.mkdir()
    (local / "data").mkdir(parents=True)
    (local / "data" / "data.json").write_text("{}")
    settings = KubeflowSettings(volume="claim", mount=str(volume))
    cluster_json = json.dumps({"platform": "kubeflow", "volume": "claim", "mount": str(settings.mount)})

    create = cluster._create

    def create_and_train(body):
        arguments = json.loads(body["spec"]["trainer"]["env"][0]["value"])
        given = dict(flag.removeprefix("--").split("=", 1) for flag in arguments[1:])
        assert (Path(given["data"]) / "data.json").read_text() == "{}"
        assert given["model"] == "owner/name"
        out = Path(given["out"])
        out.mkdir(parents=True)
        (out / "adapter_config.json").write_text("made")
        return create(body)

    cluster._create = create_and_train
    train(
        replace(CONFIG, cluster=cluster_json),
        model=Place(path="owner/name", uri="owner/name"),
        data=Place(path=str(local / "data"), uri="minio://b/data"),
        adapter=Place(path=str(local / "adapter"), uri="minio://b/adapter"),
    )
    assert (local / "adapter" / "adapter_config.json").read_text() == "made"
    assert list(volume.iterdir()) == []


def test_what_the_nodes_cant_reach_is_refused_before_a_job_is_made(cluster, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    data = Place(path=str(tmp_path / "data"), uri="minio://b/data")
    with pytest.raises(ConfigError, match=r"data is minio://b/data, which other machines can't.*volume"):
        train(data=data)
    with pytest.raises(ConfigError, match=r"adapter is minio://b/adapter, which other machines can't reach"):
        train(adapter=Place(path="/kfp/adapter", uri="minio://b/adapter"))
    assert cluster.requests == []


def test_a_failed_job_is_told_with_the_end_of_its_log_and_removed(cluster) -> None:
    cluster.states = ["Running", "Failed"]
    cluster.log = "".join(f"line {i}\n" for i in range(99)) + "RuntimeError: no luck\n"
    with pytest.raises(
        CalibError, match=r"failed; its first node said:(?s:.*)line 98\n  RuntimeError: no luck$"
    ) as caught:
        train()
    assert "line 9\n" not in str(caught.value)
    assert cluster.jobs == {}


def test_a_job_that_a_try_before_has_made_is_watched_and_not_started_twice(cluster) -> None:
    train()
    (job,) = cluster.created
    cluster.add(job["metadata"]["name"], job)  # and its maker was killed
    cluster.created.clear()
    train()
    assert cluster.created == []
    assert cluster.jobs == {}


def test_another_run_is_another_job(cluster) -> None:
    train()
    train(replace(CONFIG, epochs=4))
    train(adapter=Place(path="/kfp/adapter", uri="gs://bucket/other-task"))
    assert len({job["metadata"]["name"] for job in cluster.created}) == 3


def test_a_job_that_failed_in_a_try_before_is_made_anew(cluster) -> None:
    train()
    (job,) = cluster.created
    name = job["metadata"]["name"]
    cluster.add(name, job)
    cluster.states = ["Failed"]
    create = cluster._create

    def recovering(body):
        answer = create(body)
        if answer[0] == 201:
            cluster.states = ["Running", "Complete"]
        return answer

    cluster._create = recovering
    train()
    assert [made["metadata"]["name"] for made in cluster.created] == [name, name]
    assert cluster.jobs == {}


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, ConfigError, r"refuses the job .*\(401: .*refused for a test\); log in again"),
        (403, ConfigError, r"refuses the job .*\(403: .*create, get, list and delete trainjobs"),
        (422, ConfigError, r"refuses the job .*\(422: .*correct cluster"),
        (500, CalibError, "run this again: no job is left"),
        (-1, CalibError, "run this again: no job is left"),
    ],
)
def test_a_job_that_is_refused_is_told_with_what_to_do(cluster, status, kind, message) -> None:
    cluster.faults[f"POST {JOBS}"] = [status] * 9
    with pytest.raises(kind, match=message) as caught:
        train()
    assert caught.type is kind
    assert cluster.jobs == {}


def test_an_unknown_runtime_is_refused(cluster) -> None:
    with pytest.raises(ConfigError, match="no training runtime 'mine', or no Kubeflow Trainer"):
        train(replace(CONFIG, cluster='{"platform": "kubeflow", "runtime": "mine"}'))
    assert cluster.created == []


def test_a_cluster_that_can_t_be_reached_is_told(tmp_path, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", port)))
    with pytest.raises(CalibError, match=rf"127.0.0.1:{port} can't be reached .*no job was made"):
        train()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"no Kubernetes cluster is configured .*set KUBECONFIG"):
        train()


def test_a_control_plane_that_is_away_for_a_moment_does_no_harm(cluster) -> None:
    cluster.faults[f"GET {JOBS}"] = [500, 503, -1]
    train()
    assert len(cluster.created) == 1
    assert cluster.jobs == {}


def test_a_job_that_is_lost_is_told(cluster) -> None:
    cluster.faults[f"GET {JOBS}"] = [403]
    with pytest.raises(CalibError, match=r"is lost \(403: .*kubectl get trainjobs"):
        train()
    cluster.faults[f"GET {JOBS}"] = [503] * 50
    with pytest.raises(CalibError, match="is lost"):
        train()


def test_a_job_that_takes_too_long_is_removed(cluster) -> None:
    cluster.states = ["Running"]
    with pytest.raises(CalibError, match="has not ended in time; raise timeout_s"):
        train(replace(CONFIG, cluster='{"platform": "kubeflow", "timeout_s": 1}'))
    assert cluster.jobs == {}


def test_a_pod_that_is_told_to_stop_removes_its_job(cluster) -> None:
    cluster.states = ["Running"]
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            train()
    finally:
        timer.cancel()
    assert len(cluster.created) == 1
    assert cluster.jobs == {}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


PYTHON = """#!/bin/sh
# A python whose new environments hold what this one holds, in place of what pip would fetch from an index.
case "$*" in
"-m venv"*)
    {python} "$@" || exit
    for folder in "$4"/lib/python*/site-packages; do echo {packages} > "$folder/all.pth"; done
    echo "exec $4/bin/python -m torch.distributed.run --nproc_per_node=2 \\$1" > "$4/bin/torchrun"
    chmod +x "$4/bin/torchrun" ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def local(tmp_path, monkeypatch) -> TrainerClient:
    """The SDK's back end of local processes."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    (packages,) = [path for path in sys.path if path.endswith("site-packages")][:1]
    python.write_text(PYTHON.format(python=sys.executable, packages=packages))
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return TrainerClient(LocalProcessBackendConfig())


def local_job(client: TrainerClient, *arguments: str) -> None:
    settings = KubeflowSettings()
    job = nodes.Job(name="calib-local", arguments=arguments, nodes=1, processes=2)
    trainer: CustomTrainer = nodes_kubeflow.trainer_of(job, settings)
    # The back end's own environment doesn't see an editable install.
    sources = {"PYTHONPATH": str(Path(calib_core.__file__).parents[1])}
    trainer.env = {**os.environ, **sources, **(trainer.env or {})}
    nodes_kubeflow.run_job(
        client, job.name, runtime=settings.runtime, trainer=trainer, timeout_s=200, poll_s=0.2
    )


@pytest.mark.slow
def test_the_same_call_trains_in_local_processes(local, tiny_llama, tmp_path, monkeypatch) -> None:
    from test_steps import FINETUNE, prepared

    from calib_core.settings.parameters import flags_of
    from calib_core.storage.files import read_json

    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    data, out = prepared(tmp_path, pairs=False), tmp_path / "adapter"
    flags = flags_of(replace(FINETUNE, processes=2))
    local_job(local, "cft", f"--model={tiny_llama}", f"--data={data}", f"--out={out}", *flags)
    assert read_json(out / "calibration.json")["parameters"]["processes"] == 2
    assert local.list_jobs() == []


@pytest.mark.slow
def test_a_local_job_that_fails_is_told_with_its_log(local, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CalibError, match=r"calib-local failed(?s:.*)error: .*data\.json: no such file"):
        local_job(local, "cft", "--model=m", f"--data={tmp_path}", f"--out={tmp_path}/out")


@pytest.mark.parametrize(
    ("cluster_json", "message"),
    [
        ("", "cluster is '', which is no JSON"),
        ("{}", r"whose platform is one of kubeflow, vertex"),
        ("[1]", r"whose platform is one of kubeflow, vertex"),
        ('{"platform": "slurm"}', "whose platform is one of kubeflow, vertex"),
        ('{"platform": "kubeflow", "gpus": 2}', "no setting gpus for kubeflow; there are image, runtime"),
        ('{"platform": "kubeflow", "mount": "data"}', "mount is 'data'; give an absolute path"),
        ('{"platform": "kubeflow", "timeout_s": "1h"}', "timeout_s is '1h'"),
        ('{"platform": "vertex", "project": "p"}', "region, staging_bucket missing for vertex"),
        (
            '{"platform": "vertex", "project": "p", "region": "r", "staging_bucket": "b"}',
            "staging_bucket is 'b'; give a bucket as gs://name",
        ),
    ],
)
def test_cluster_is_checked(cluster_json, message) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(cluster_json)


def test_one_node_needs_no_cluster(monkeypatch) -> None:
    seen = []
    monkeypatch.setitem(nodes.METHODS, "rcft", lambda *given: seen.append(given))
    config = FinetuneConfig()
    finetune("rcft", config, **PLACES)
    assert seen == [(config, "/kfp/model", Path("/kfp/data"), Path("/kfp/adapter"))]


SPEC = {
    "cluster": {"workerpool0": ["first-0:2222"], "workerpool1": ["other-0:2222", "other-1:2222"]},
    "environment": "cloud",
    "task": {"type": "workerpool1", "index": 1},
}


def test_a_vertex_node_knows_its_place() -> None:
    command = vertex_node.torchrun_command(SPEC, 4, ["cft", "--nodes=3"])
    assert command[3:] == [
        "--nnodes=3",
        "--node_rank=2",
        "--nproc_per_node=4",
        "--master_addr=first-0",
        "--master_port=3333",
        *("-m", "calib_core", "cft", "--nodes=3"),
    ]
    first = {**SPEC, "task": {"type": "workerpool0", "index": 0}, "open_ports": [2345]}
    assert {"--node_rank=0", "--master_port=2345"} <= set(vertex_node.torchrun_command(first, 1, []))


@pytest.mark.slow
def test_two_vertex_nodes_meet_in_one_run(tmp_path) -> None:
    """Two replicas on this machine, each with the variable that Vertex gives it: both read, and refuse."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster = {"workerpool0": ["127.0.0.1:2222"], "workerpool1": ["127.0.0.1:2223"]}
    running = []
    for pool in cluster:
        spec = {"cluster": cluster, "task": {"type": pool, "index": 0}, "open_ports": [port]}
        environment = {**os.environ, "CLUSTER_SPEC": json.dumps(spec), "RANK": "7", "WORLD_SIZE": "1"}
        command = [sys.executable, "-m", "calib_components.nodes.replica", "1", "cft", "--model=m"]
        command += [f"--data={tmp_path}", f"--out={tmp_path}/out", "--nodes=2"]
        running.append(
            subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, cwd=tmp_path)
        )
    ends = [process.communicate(timeout=120)[1] for process in running]
    assert all(process.returncode != 0 for process in running)
    assert all("data.json: no such file" in end for end in ends)

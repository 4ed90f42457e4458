"""Jobs on several machines while they run: watched, lost, refused, removed; their nodes as processes."""

from __future__ import annotations

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

pytest.importorskip("kubernetes")

from kubeflow_jobs import CONFIG, PLACES, environment, node, on_kubeflow, train
from kubernetes_api import JOBS, NAMESPACE, POD, Cluster, write_kubeconfig
from rbac import Account, account

from calib_components.image import IMAGE
from calib_components.nodes import nodes
from calib_components.nodes import replica as vertex_node
from calib_components.nodes.job import JobConfig, Place
from calib_components.nodes.nodes import finetune, read_settings
from calib_core.errors import CalibError, ConfigError
from calib_core.storage.files import read_json

pytestmark = pytest.mark.slow  # a server for each test


def test_a_job_is_made_watched_and_removed(cluster, capsys) -> None:
    train()
    (job,) = cluster.created
    name = job["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert len(cluster.nodes()) == 2
    for pod in cluster.nodes():
        assert node(pod)["image"] == IMAGE
        assert node(pod)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert cluster.jobs == {}
    assert cluster.count(f"DELETE {JOBS}") == 1
    said = capsys.readouterr().err
    assert f"job {name}: 2 nodes, 2 processes on each, runtime torch-distributed, namespace team" in said
    assert "epoch 1.00: held-out accuracy 0.500" in said
    assert f"job {name}: complete" in said


def test_a_failed_job_is_told_with_the_end_of_its_log_and_removed(cluster) -> None:
    cluster.states = ["Running", "Failed"]
    cluster.log = "".join(f"line {i}\n" for i in range(99)) + "RuntimeError: no luck\n"
    with pytest.raises(
        CalibError,
        match=r"failed \(FailedJobs: jobset.*\); its first node said:(?s:.*)98\n  RuntimeError: no luck$",
    ) as caught:
        train()
    assert "line 9\n" not in str(caught.value)
    assert cluster.jobs == {}


def test_a_pod_that_doesnt_start_is_told(cluster, capsys) -> None:
    cluster.states = ["Created", "Created", "Running", "Complete"]
    cluster.waiting = ("ImagePullBackOff", 'Back-off pulling image "calib:1"')
    train()
    assert 'first node pending ImagePullBackOff: Back-off pulling image "calib:1"' in capsys.readouterr().err


def test_a_job_that_a_try_before_has_made_is_watched_and_not_started_twice(cluster) -> None:
    train()
    (job,) = cluster.created
    first = {**job["metadata"]["ownerReferences"][0], "name": "first-try", "uid": "0b5c-0"}
    cluster.add({**job, "metadata": {**job["metadata"], "ownerReferences": [first]}})  # its maker was killed
    cluster.created.clear()
    seen = []
    look = cluster._job

    def watched(method, name, body):
        answer = look(method, name, body)
        seen.append(cluster.jobs.get(name, {}).get("metadata", {}).get("ownerReferences"))
        return answer

    cluster._job = watched
    train()
    assert cluster.created == []
    assert cluster.jobs == {}
    assert [{**first, "name": POD["metadata"]["name"], "uid": POD["metadata"]["uid"]}] in seen  # and now ours


def test_another_run_is_another_job(cluster) -> None:
    train()
    train(replace(CONFIG, epochs=4))
    train(adapter=Place(path="/kfp/adapter", uri="gs://bucket/other-task"))
    assert len({job["metadata"]["name"] for job in cluster.created}) == 3


@pytest.mark.parametrize("state", ["failed", "being removed"])
def test_a_job_that_is_no_good_any_more_is_made_anew(cluster, state) -> None:
    train()
    (job,) = cluster.created
    name = job["metadata"]["name"]
    if state == "being removed":  # with the pod of the try before
        job = {**job, "metadata": {**job["metadata"], "deletionTimestamp": "2026-01-01T00:01:00Z"}}
    else:
        cluster.states = ["Failed"]
    cluster.add(job)
    cluster.lingering = 3
    create = cluster._create

    def recovering(body, *, dry_run):
        answer = create(body, dry_run=dry_run)
        if answer[0] == 201 and not dry_run:
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
        (403, ConfigError, r"refuses the job .*\(403: .*create, get, patch and delete trainjobs"),
        (422, ConfigError, r"refuses the job .*\(422: .*correct cluster"),
        (500, CalibError, "run this again"),
        (-1, CalibError, "run this again"),
    ],
)
def test_a_job_that_is_refused_is_told_with_what_to_do(cluster, status, kind, message) -> None:
    cluster.faults[f"POST {JOBS}"] = [status] * 9
    with pytest.raises(kind, match=message) as caught:
        train()
    assert caught.type is kind
    assert cluster.jobs == {}


def test_a_job_that_was_made_although_no_answer_came_is_watched(cluster, capsys) -> None:
    create = cluster._create

    def silent(body, *, dry_run):
        answer = create(body, dry_run=dry_run)
        return answer if dry_run else (500, {"message": "etcd is slow"})

    cluster._create = silent
    train()
    assert "already exists; watching it" in capsys.readouterr().err
    assert len(cluster.created) == 1
    assert cluster.jobs == {}


def test_a_webhooks_refusal_is_not_taken_for_a_missing_permission(cluster) -> None:
    """Both are a 403."""

    def denied(body, *, dry_run):
        return 403, {"message": 'admission webhook "policy.example" denied the request: no GPUs on Fridays'}

    cluster._create = denied
    with pytest.raises(ConfigError, match=r"no GPUs on Fridays\); correct cluster"):
        train()


def test_the_role_in_deploy_is_all_that_a_task_needs(cluster) -> None:
    """A whole run, a failed one and one that a try before has made use each of its permissions."""
    train()
    (job,) = cluster.created
    cluster.add(job)
    train()
    granted = {
        (verb, group, resource)
        for _, rule in account(NAMESPACE, "default-editor").rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert cluster.allowed == granted


GRANTED = sorted(
    (rule["resources"][0], verb)
    for _, rule in account(NAMESPACE, "default-editor").rules
    for verb in rule["verbs"]
)


@pytest.mark.parametrize(("resource", "verb"), [one for one in GRANTED if one[0] != "pods/log"])
def test_a_permission_that_is_missing_is_told(cluster, capsys, resource, verb) -> None:
    full = cluster.accounts["not-a-secret"]
    rules = [
        (
            where,
            {**rule, "verbs": [v for v in rule["verbs"] if (rule["resources"][0], v) != (resource, verb)]},
        )
        for where, rule in full.rules
    ]
    cluster.accounts["not-a-secret"] = Account(full.user, rules)
    if verb in ("patch", "delete"):
        cluster.accounts["not-a-secret"] = full
        train()
        cluster.add(cluster.created[0])
        cluster.accounts["not-a-secret"] = Account(full.user, rules)
    try:
        train()
        told = capsys.readouterr().err
    except CalibError as error:
        told = str(error)
    assert f"cannot {verb} resource" in told
    assert "deploy/kubernetes/calib-train.yaml has the role" in told


def test_a_log_that_may_not_be_read_does_no_harm(cluster) -> None:
    full = cluster.accounts["not-a-secret"]
    rules = [(where, rule) for where, rule in full.rules if rule["resources"] != ["pods/log"]]
    cluster.accounts["not-a-secret"] = Account(full.user, rules)
    train()
    assert cluster.jobs == {}


def test_a_stranger_is_told_to_log_in(cluster) -> None:
    cluster.accounts.clear()
    with pytest.raises(ConfigError, match=r"401: Unauthorized\); log in again"):
        train()


def test_a_cluster_that_can_t_be_reached_is_told(tmp_path, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", port)))
    with pytest.raises(CalibError, match=rf"localhost:{port} can't be reached .*no job was made"):
        train()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"no Kubernetes cluster is configured .*set KUBECONFIG"):
        train()


def test_a_control_plane_that_is_away_for_a_moment_does_no_harm(cluster) -> None:
    cluster.faults[f"GET {JOBS}"] = [500, 503, -1, 429]
    train()
    assert len(cluster.created) == 1
    assert cluster.jobs == {}


def test_a_job_that_is_lost_is_told(cluster) -> None:
    cluster.faults[f"GET {JOBS}"] = [403]
    with pytest.raises(CalibError, match=r"is lost: .*403: .*kubectl get trainjobs") as caught:
        train()
    assert caught.type is CalibError  # tried again, not the user's mistake
    cluster.faults[f"GET {JOBS}"] = [503] * 50
    with pytest.raises(CalibError, match="is lost"):
        train()


def test_a_job_that_somebody_removes_is_told(cluster) -> None:
    cluster.faults[f"GET {JOBS}"] = [404]
    with pytest.raises(CalibError, match="was removed while it ran"):
        train()


def test_a_job_that_takes_too_long_is_removed(cluster) -> None:
    cluster.states = ["Running"]
    with pytest.raises(CalibError, match="has not ended in time; raise timeout_s"):
        train(on_kubeflow(timeout_s=1))
    assert cluster.jobs == {}


def test_a_process_that_is_told_to_stop_removes_its_job(cluster) -> None:
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


def start_nodes(cluster: Cluster, port: int, folder: Path) -> list[subprocess.Popen[str]]:
    """The command of each node as a process of this machine, with the variables that Trainer gives it."""
    running = []
    for pod in cluster.nodes():
        assert environment(pod)["PET_MASTER_ADDR"].endswith(f".{cluster.created[-1]['metadata']['name']}")
        here = {**environment(pod), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
        arguments = [argument.replace("$$", "$") for argument in node(pod)["args"]]
        program, *rest = node(pod)["command"]
        assert program == "python"
        running.append(
            subprocess.Popen(
                [sys.executable, *rest, *arguments],
                env={**os.environ, **here, "CALIB_CACHE": str(folder / "cache")},
                text=True,
                stdout=subprocess.DEVNULL,
                cwd=folder,
            )
        )
    return running


def test_the_nodes_of_a_job_train_together(cluster, tiny_llama, tmp_path) -> None:
    """Two nodes of two processes each: eight CPUs a node, which without a number would be eight processes."""
    from test_steps import FINETUNE, prepared

    volume = tmp_path / "volume"
    volume.mkdir()
    data, out = prepared(tmp_path, pairs=False), tmp_path / "adapter"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running: list[subprocess.Popen[str]] = []
    look = cluster._job

    def training(method, name, body):
        if method == "GET" and not running:
            running.extend(start_nodes(cluster, port, tmp_path))
        ends = [process.poll() for process in running]
        cluster.states = ["Running" if None in ends else "Complete" if ends == [0, 0] else "Failed"]
        return look(method, name, body)

    cluster._job = training
    settings = {"platform": "kubeflow", "gpu": False, "cpu": "8", "volume": "claim", "mount": str(volume)}
    run = {**vars(FINETUNE), "nodes": 2, "processes": 2, "batch_size": 4}
    config = JobConfig(**run, cluster=json.dumps(settings))
    places = {"model": tiny_llama, "data": data, "adapter": out}
    train(config, **{name: Place(path=str(path), uri=str(path)) for name, path in places.items()})
    record = read_json(out / "calibration.json")
    assert record["parameters"]["processes"] == 2
    assert record["processes"] == 4
    assert list(volume.iterdir()) == []


@pytest.mark.parametrize(
    ("cluster_json", "message"),
    [
        ("", "cluster is '', which is no JSON"),
        ("{}", r"whose platform is one of kubeflow, vertex"),
        ("[1]", r"whose platform is one of kubeflow, vertex"),
        ('{"platform": "slurm"}', "whose platform is one of kubeflow, vertex"),
        ('{"platform": "kubeflow", "gpus": 2}', "no setting gpus for kubeflow; there are image, runtime"),
        ('{"platform": "kubeflow", "mount": "data"}', "`mount` is 'data'; give an absolute path"),
        ('{"platform": "kubeflow", "timeout_s": "1h"}', "`timeout_s` is '1h'"),
        ('{"platform": "vertex", "project": "p"}', "region, staging_bucket missing for vertex"),
        (
            '{"platform": "vertex", "project": "p", "region": "r", "staging_bucket": "b"}',
            "`staging_bucket` is 'b'; give a bucket as gs://name",
        ),
    ],
)
def test_cluster_is_checked(cluster_json, message) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(cluster_json)


def test_one_node_needs_no_cluster(monkeypatch) -> None:
    seen = []
    monkeypatch.setitem(nodes.METHODS, "rcft", lambda *given: seen.append(given))
    config = JobConfig()
    finetune("rcft", config, **PLACES)
    assert seen == [(config.training(), "/kfp/model", Path("/kfp/data"), Path("/kfp/adapter"))]


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
        command += [f"--data={tmp_path}", f"--out={tmp_path}/out"]
        running.append(
            subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, cwd=tmp_path)
        )
    ends = [process.communicate(timeout=120)[1] for process in running]
    assert all(process.returncode != 0 for process in running)
    assert all("data.json: no such file" in end for end in ends)

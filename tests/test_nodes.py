"""Jobs on several machines: Kubeflow's TrainJob, against an API on loopback, its nodes as local processes."""

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
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes_api import JOBS, NAMESPACE, POD, PODS, TRAINER, Cluster, serving, write_kubeconfig
from rbac import Account, account
from trainer_standin import RUNTIME, VERSIONS, RefusedError, admitted

from calib_components.image import IMAGE
from calib_components.nodes import kubeflow as nodes_kubeflow
from calib_components.nodes import nodes
from calib_components.nodes import replica as vertex_node
from calib_components.nodes.cluster import dropped_fields
from calib_components.nodes.job import Job, JobConfig, KubeflowSettings, Place
from calib_components.nodes.nodes import finetune, read_settings
from calib_components.nodes.trainjob import SHARED_MEMORY, WORK_FOLDERS, Pod, train_job_body
from calib_core.commands.library import add_commands
from calib_core.errors import CalibError, ConfigError
from calib_core.settings.parameters import config_from
from calib_core.storage.uris import StoredFile
from calib_core.training.config import FinetuneConfig

pytestmark = pytest.mark.slow  # a server for each test

CONFIG = JobConfig(nodes=2, processes=2, epochs=3, cluster='{"platform": "kubeflow"}')
PLACES = {
    name: Place(path=f"/kfp/{name}", uri=f"gs://bucket/{name}") for name in ("model", "data", "adapter")
}
MODEL_GIB = 15
(SHM,) = SHARED_MEMORY


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A cluster on loopback, where it is served, and a bucket whose model can be listed."""
    monkeypatch.setattr(nodes_kubeflow, "POLL_S", 0.02)
    monkeypatch.setattr(nodes_kubeflow, "LOST_POLLS", 3)
    model = StoredFile(
        uri="gs://bucket/model/model.safetensors",
        path="model.safetensors",
        size_bytes=MODEL_GIB * 2**30,
        version="1",
    )
    monkeypatch.setattr(nodes_kubeflow, "list_files", lambda uri: [model] * uri.endswith("model"))
    made = Cluster()
    with serving(made, tmp_path) as there:
        yield made, there


@pytest.fixture
def cluster(served, monkeypatch) -> Cluster:
    """The cluster, in a pod of which this process is."""
    made, there = served
    there.enter_as_pod(monkeypatch)
    return made


def train(config: JobConfig = CONFIG, **places: Place) -> None:
    finetune("cft", config, **{**PLACES, **places})


def on_kubeflow(**settings: Any) -> JobConfig:
    return replace(CONFIG, cluster=json.dumps({"platform": "kubeflow", **settings}))


def node(pod: dict[str, Any]) -> dict[str, Any]:
    """The container of a node's pod that trains."""
    (container,) = [made for made in pod["spec"]["containers"] if made["name"] == "node"]
    return container


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {made["name"]: made["value"] for made in node(pod)["env"] if "value" in made}


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


def test_the_nodes_are_told_the_same_run(cluster) -> None:
    train()
    arguments = node(cluster.nodes()[0])["args"]
    commands = argparse.ArgumentParser().add_subparsers()
    add_commands(commands)
    given = commands.choices[arguments[0]].parse_args(arguments[1:])
    assert (given.model, arguments[0]) == ("gs://bucket/model", "cft")
    assert {"--data=gs://bucket/data", "--out=gs://bucket/adapter"} <= set(arguments)
    assert config_from(FinetuneConfig, vars(given)) == CONFIG.training()


def test_what_kubernetes_would_take_for_a_variable_stays_text(cluster) -> None:
    train(model=Place(path="/kfp/model", uri="gs://bucket/$(HOME)/$model"))
    assert "--model=gs://bucket/$$(HOME)/$$model" in node(cluster.nodes()[0])["args"]


def test_nodes_run_as_the_task_does(cluster) -> None:
    train()
    for pod in cluster.nodes():
        assert pod["spec"]["serviceAccountName"] == "default-editor"
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        given = [variable for variable in node(pod)["env"] if not variable["name"].startswith("PET_")]
        assert given == [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
            {"name": "AWS_ENDPOINT_URL_S3", "value": "http://minio:9000"},
        ]  # and nothing of KFP's, Argo's or AWS's own


def test_another_account_can_be_named(cluster) -> None:
    train(on_kubeflow(service_account="trainer"))
    assert {pod["spec"]["serviceAccountName"] for pod in cluster.nodes()} == {"trainer"}


def test_nodes_get_no_sidecar(cluster) -> None:
    train()
    for pod in cluster.nodes():
        assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
        assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"


@pytest.mark.parametrize("settings", [{"gpu": False, "cpu": "8"}, {"gpu": False}, {"gpu": True}])
def test_as_many_processes_start_as_were_asked_for(cluster, settings) -> None:
    train(on_kubeflow(**settings))
    assert [environment(pod)["PET_NPROC_PER_NODE"] for pod in cluster.nodes()] == ["2", "2"]


def test_nodes_ask_for_storage_by_the_models_size(cluster) -> None:
    train()
    assert node(cluster.nodes()[0])["resources"]["requests"]["ephemeral-storage"] == f"{MODEL_GIB + 16}Gi"
    train(on_kubeflow(storage="99Gi"))
    assert node(cluster.nodes()[0])["resources"]["requests"]["ephemeral-storage"] == "99Gi"
    train(model=Place(path="owner/name", uri="owner/name"))  # the hub's sizes are not known here
    assert "ephemeral-storage" not in node(cluster.nodes()[0])["resources"]["requests"]


def mounts(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Volumes of a pod by the path at which its node mounts them."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in node(pod)["volumeMounts"]}


def test_processes_that_share_a_node_share_memory(cluster) -> None:
    train()
    assert mounts(cluster.nodes()[0])[SHM]["emptyDir"] == {"medium": "Memory"}
    train(replace(CONFIG, processes=1))
    assert SHM not in mounts(cluster.nodes()[0])


def test_nodes_are_confined(cluster) -> None:
    """What the pod security standard `restricted` asks for, and a root file system that is only read."""
    train()
    for pod in cluster.nodes():
        context = node(pod)["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["readOnlyRootFilesystem"] is True
        assert set(WORK_FOLDERS) <= mounts(pod).keys()  # what the image writes to


def test_what_a_runtime_says_itself_stays(cluster) -> None:
    runtime = json.loads(json.dumps(RUNTIME))
    runtime["kind"] = "TrainingRuntime"
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]["template"]["spec"]
    spec["volumes"] = [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "cache", "mountPath": "/scratch"}]
    spec["containers"][0]["securityContext"] = {"readOnlyRootFilesystem": False}
    path = f"{TRAINER}/namespaces/{NAMESPACE}/trainingruntimes/mine"
    runtime["metadata"]["name"] = "mine"
    cluster.objects[path] = runtime
    train(on_kubeflow(runtime="mine"))
    pod = cluster.nodes()[0]
    assert mounts(pod)["/scratch"]["persistentVolumeClaim"] == {"claimName": "cache"}
    assert node(pod)["securityContext"]["readOnlyRootFilesystem"] is False
    assert node(pod)["securityContext"]["runAsNonRoot"] is True


def test_settings_reach_the_job(cluster, tmp_path) -> None:
    train(on_kubeflow(image="r/calib:7", volume="claim", mount=str(tmp_path), gpu=False, memory="64Gi"))
    pod = cluster.nodes()[0]
    assert node(pod)["image"] == "r/calib:7"
    assert node(pod)["resources"]["requests"].items() >= {"cpu": "2", "memory": "64Gi"}.items()
    assert mounts(pod)[str(tmp_path)]["persistentVolumeClaim"] == {"claimName": "claim"}


def test_without_a_bucket_everything_goes_over_the_volume(cluster, tmp_path) -> None:
    volume, local = tmp_path / "volume", tmp_path / "local"
    volume.mkdir()
    (local / "data").mkdir(parents=True)
    (local / "data" / "data.json").write_text("{}")
    create = cluster._create

    def create_and_train(body, *, dry_run):
        if not dry_run:
            arguments = body["spec"]["trainer"]["args"]
            given = dict(flag.removeprefix("--").partition("=")[::2] for flag in arguments[1:])
            assert (Path(given["data"]) / "data.json").read_text() == "{}"
            assert given["model"] == "owner/name"
            out = Path(given["out"])
            out.mkdir(parents=True)
            (out / "adapter_config.json").write_text("made")
        return create(body, dry_run=dry_run)

    cluster._create = create_and_train
    train(
        on_kubeflow(volume="claim", mount=str(volume)),
        model=Place(path="owner/name", uri="owner/name"),
        data=Place(path=str(local / "data"), uri=str(local / "data")),
        adapter=Place(path=str(local / "adapter"), uri=str(local / "adapter")),
    )
    assert (local / "adapter" / "adapter_config.json").read_text() == "made"
    assert list(volume.iterdir()) == []


def test_what_the_nodes_cant_reach_is_refused_before_a_job_is_made(cluster, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    data = Place(path=str(tmp_path / "data"), uri=str(tmp_path / "data"))
    with pytest.raises(ConfigError, match=r"data is /.*/data, which other machines can't.*volume"):
        train(data=data)
    with pytest.raises(ConfigError, match=r"adapter is /out/adapter, which other machines can't reach"):
        train(adapter=Place(path="/out/adapter", uri="/out/adapter"))
    assert cluster.requests == []


@pytest.mark.parametrize("scheme", ["gs", "s3", "minio"])
def test_buckets_are_read_and_written_by_the_nodes_themselves(cluster, scheme) -> None:
    train(**{name: Place(path=f"/{scheme}/b/{name}", uri=f"{scheme}://b/{name}") for name in PLACES})
    arguments = node(cluster.nodes()[0])["args"]
    assert {f"--model={scheme}://b/model", f"--data={scheme}://b/data"} <= set(arguments)
    assert f"--out={scheme}://b/adapter" in arguments


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_is_what_the_published_schema_asks_for(version) -> None:
    """Every setting in use: from 2.2 on all of it is kept; 2.1 leaves out what it doesn't know."""
    settings = KubeflowSettings(
        volume="claim",
        service_account="a",
        cpu="8",
        memory="64Gi",
        storage="9Gi",
        runtime="torch-distributed",
    )
    job = Job(name="calib-cft-1", arguments=("cft", "--epochs=3"), nodes=2, processes=2)
    maker = Pod(
        name="p",
        uid="u",
        namespace="team",
        account="b",
        environment=({"name": "T", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},),
        pull_secrets=({"name": "registry"},),
    )
    body = train_job_body(job, settings, RUNTIME, maker=maker)
    kept = admitted(body, version, RUNTIME)
    if version == "2.1":
        assert body["spec"].keys() - kept["spec"].keys() == {"activeDeadlineSeconds", "runtimePatches"}
    else:
        assert dropped_fields(body, kept) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("trainer", "numProcPerNode"), "auto"),  # which 2.1 still took
        (("trainer", "numNodes"), "2"),
        (("activeDeadlineSeconds",), 0),
        (("trainer", "env"), [{"name": "PET_NNODES", "value": "2"}]),
        (("runtimePatches", 0, "manager"), "calib"),
    ],
)
def test_the_stand_in_refuses_what_the_real_one_refuses(path, value) -> None:
    job = Job(name="calib-cft-1", arguments=("cft",), nodes=2, processes=2)
    body = train_job_body(job, KubeflowSettings(), RUNTIME, maker=None)
    *parents, last = path
    place = body["spec"]
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(RefusedError):
        admitted(body, "2.3", RUNTIME)


def test_an_old_trainer_is_refused_before_anything_is_copied(cluster, tmp_path) -> None:
    """It would prune the patches: nodes without the volume, as another account, with a sidecar."""
    cluster.trainer = "2.1"
    volume, data = tmp_path / "volume", tmp_path / "data"
    for folder in (volume, data):
        folder.mkdir()
    with pytest.raises(ConfigError, match=r"older than 2\.2.*leaves .*spec\.runtimePatches out.*upgraded"):
        train(
            on_kubeflow(volume="claim", mount=str(volume)),
            data=Place(path=str(data), uri=str(data)),
        )
    assert cluster.jobs == {}
    assert cluster.created == []
    assert list(volume.iterdir()) == []


def test_a_cluster_without_trainer_is_told(cluster) -> None:
    cluster.trainer = ""
    cluster.objects = {}
    with pytest.raises(
        ConfigError, match=r"no training runtime 'torch-distributed', or no Kubeflow Trainer 2"
    ):
        train()


def test_an_unknown_runtime_is_refused(cluster) -> None:
    with pytest.raises(ConfigError, match="no training runtime 'mine', or no Kubeflow Trainer 2"):
        train(on_kubeflow(runtime="mine"))
    assert cluster.created == []


def test_a_runtime_for_another_framework_is_refused(cluster) -> None:
    other = json.loads(json.dumps(RUNTIME))
    other["spec"]["mlPolicy"] = {"numNodes": 1, "mpi": {}}
    cluster.objects[f"{TRAINER}/clustertrainingruntimes/torch-distributed"] = other
    with pytest.raises(ConfigError, match=r"is not for torch"):
        train()
    other["spec"]["mlPolicy"] = {"torch": {}}
    other["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["metadata"]["labels"] = {}
    with pytest.raises(ConfigError, match=r"has no container 'node'"):
        train()


def test_a_job_belongs_to_the_pod_that_made_it(cluster) -> None:
    """KFP's launcher may be gone before its program can remove anything: the cluster does it then."""
    train()
    (job,) = cluster.created
    pod = POD["metadata"]
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": pod["name"], "uid": pod["uid"]}
    ]
    assert job["spec"]["activeDeadlineSeconds"] == 86400  # and where the pod stays, its nodes still end
    cluster.add(job)  # its maker was killed
    cluster.remove_pod(pod["name"])
    assert cluster.jobs == {}


def test_a_job_in_another_namespace_has_no_owner(cluster) -> None:
    """A cluster removes at once what has an owner in another namespace."""
    elsewhere = account(NAMESPACE, "default-editor")
    elsewhere.rules = [("", rule) for _, rule in elsewhere.rules]
    cluster.accounts["not-a-secret"] = elsewhere
    with pytest.raises(ConfigError, match=r"refuses the job .*not found\); correct cluster"):
        train(on_kubeflow(namespace="other"))
    made = nodes_kubeflow.connect("other")
    assert made.pod is not None
    assert made.owner is None


def test_from_outside_the_cluster_the_runtimes_account_stays(served, monkeypatch) -> None:
    cluster, there = served
    there.enter_as_user(monkeypatch)
    train()
    (job,) = cluster.created
    assert "ownerReferences" not in job["metadata"]
    assert {pod["spec"]["serviceAccountName"] for pod in cluster.nodes()} == {"default"}
    assert cluster.count(f"GET {PODS}/{POD['metadata']['name']}") == 0


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


def test_a_job_that_was_made_although_no_answer_came_is_not_left_behind(cluster) -> None:
    create = cluster._create

    def silent(body, *, dry_run):
        answer = create(body, dry_run=dry_run)
        return answer if dry_run else (500, {"message": "etcd is slow"})

    cluster._create = silent
    with pytest.raises(CalibError, match=r"etcd is slow.*run this again"):
        train()
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
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        )
    return running


def test_the_nodes_of_a_job_train_together(cluster, tiny_llama, tmp_path) -> None:
    """Two nodes of two processes each: eight CPUs a node, which without a number would be eight processes."""
    from test_steps import FINETUNE, prepared

    from calib_core.storage.files import read_json

    volume = tmp_path / "volume"
    volume.mkdir()
    data, out = prepared(tmp_path, pairs=False), tmp_path / "adapter"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running: list[subprocess.Popen[str]] = []
    look = cluster._job

    def trained_at_the_first_look(method, name, body):
        if method == "GET" and not running:
            running.extend(start_nodes(cluster, port, tmp_path))
            ends = [process.communicate(timeout=300)[0] for process in running]
            assert [process.returncode for process in running] == [0, 0], ends
        return look(method, name, body)

    cluster._job = trained_at_the_first_look
    settings = {"platform": "kubeflow", "gpu": False, "cpu": "8", "volume": "claim", "mount": str(volume)}
    config = replace(FINETUNE, nodes=2, processes=2, batch_size=4, cluster=json.dumps(settings))
    places = {"model": tiny_llama, "data": data, "adapter": out}
    train(config, **{name: Place(path=str(path), uri=str(path)) for name, path in places.items()})
    record = read_json(out / "calibration.json")
    assert record["parameters"]["processes"] == 2
    assert record["parameters"]["nodes"] == 2
    assert list(volume.iterdir()) == []


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
        command += [f"--data={tmp_path}", f"--out={tmp_path}/out", "--nodes=2"]
        running.append(
            subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, cwd=tmp_path)
        )
    ends = [process.communicate(timeout=120)[1] for process in running]
    assert all(process.returncode != 0 for process in running)
    assert all("data.json: no such file" in end for end in ends)

"""What a TrainJob asks of a cluster, what its nodes get, and which clusters are refused."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("kubernetes")

from kubeflow_jobs import CONFIG, MODEL_GIB, PLACES, environment, mounts, node, on_kubeflow, train
from kubernetes_api import NAMESPACE, POD, PODS, TRAINER
from rbac import account
from trainer_standin import RUNTIME, VERSIONS, RefusedError, admitted

from calib_components.nodes import kubeflow as nodes_kubeflow
from calib_components.nodes.job import Job, Place
from calib_components.nodes.nodes import TrainJobSettings
from calib_components.nodes.trainjob import SHARED_MEMORY, WORK_FOLDERS, Pod, train_job_body
from calib_components.nodes.trainjob_api import dropped_fields
from calib_core.commands.library import add_commands
from calib_core.errors import ConfigError
from calib_core.settings.parameters import config_from
from calib_core.training.config import FinetuneConfig

pytestmark = pytest.mark.slow  # a server for each test

(SHM,) = SHARED_MEMORY


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


def test_what_holds_for_the_work_holds_on_the_nodes(cluster, monkeypatch) -> None:
    work = {"CALIB_CHECKPOINTS": "output", "CALIB_MAX_JSON_BYTES": "1000", "CALIB_QUIET_DATA": "1"}
    for name, value in work.items():
        monkeypatch.setenv(name, value)
    train()
    for pod in cluster.nodes():
        assert work.items() <= environment(pod).items()
        assert "CALIB_CACHE" not in environment(pod)


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
    settings = TrainJobSettings(
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
    body = train_job_body(job, TrainJobSettings(), RUNTIME, maker=None)
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


def test_from_outside_the_cluster_the_runtimes_account_stays(served_cluster, monkeypatch) -> None:
    cluster, there = served_cluster
    there.enter_as_user(monkeypatch)
    train()
    (job,) = cluster.created
    assert "ownerReferences" not in job["metadata"]
    assert {pod["spec"]["serviceAccountName"] for pod in cluster.nodes()} == {"default"}
    assert cluster.count(f"GET {PODS}/{POD['metadata']['name']}") == 0

"""Packages for Kubeflow and for Vertex: from one definition, valid by the platforms' own schemas."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler, local
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from pods import pods
from test_pipeline import stage  # noqa: F401 - a fixture

import calib_pipelines
from calib_core.errors import ConfigError
from calib_core.settings.parameters import parameters_of
from calib_pipelines.commands import main as cli
from calib_pipelines.compile import DEFINITIONS
from calib_pipelines.definitions.platforms import KINDS, ClusterPlatform, Settings, build
from calib_pipelines.definitions.restore_calibration import define, restore_calibration
from calib_pipelines.targets.compiling import TARGETS, package
from calib_pipelines.targets.kubeflow import SPOT, Kubeflow, KubeflowSettings
from calib_pipelines.targets.vertex import MACHINES, VertexSettings

FOLDER = Path(calib_pipelines.__file__).parent
WITH_A_MODEL = {"dpo-align", "evaluate", "evaluate-2", "evaluate-3", "cft-finetune", "em-ece-finetune"}
WITHOUT = {
    "data-prep",
    *(f"end-branch{number}" for number in ("", "-2", "-3", "-4", "-5", "-6", "-7")),
    "temperature-scaling",
    "promote",
    "record-end",
}
FINE_TUNING = {"cft-finetune", "em-ece-finetune"}
SHARED_MEMORY = {"shared-memory": "/dev/shm"}  # noqa: S108


def compiled(component: Any, folder: Path) -> list[dict[str, Any]]:
    path = folder / "package.yaml"
    compiler.Compiler().compile(component, str(path))
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def kubeflow(tmp_path_factory):
    """A package for Kubeflow with a bit of everything."""
    settings = KubeflowSettings(
        model_parameters="8B",
        accelerator="nvidia-a100-80gb",
        count=2,
        node_selector="pool=gpu, example.com/zone=a",
        tolerations="nvidia.com/gpu:NoSchedule,team=nlp:NoExecute",
        spot="gke",
        secrets="HF_TOKEN=hub/token,PROXY=net/proxy",
        pvc="data:/data,runs:/var/runs",
        run_records="/var/runs/calib",
        retries=3,
        timeout_hours=1.5,
        cache="/data/cache",
    )
    return compiled(package("kubeflow", settings), tmp_path_factory.mktemp("kubeflow"))


@pytest.fixture(scope="module")
def vertex(tmp_path_factory):
    """A package for Vertex with a bit of everything."""
    settings = VertexSettings(
        model_parameters="1.5B",
        accelerator="nvidia-l4",
        machine_type="g2-standard-12",
        service_account="calib@team-1.iam.gserviceaccount.com",
        network="projects/123/global/networks/inner",
        strategy="FLEX_START",
        max_wait_hours=2.0,
        boot_disk_gb=200,
        timeout_hours=6.0,
        run_records="gs://bucket/runs",
    )
    return compiled(package("vertex", settings), tmp_path_factory.mktemp("vertex"))


def tasks(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """All tasks of a package by name; those of conditions and of the exit handler left out."""
    dags = [documents[0]["root"], *documents[0]["components"].values()]
    return {
        name: task
        for dag in dags
        for name, task in dag.get("dag", {}).get("tasks", {}).items()
        if not name.startswith(("condition", "exit-handler"))
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_compiled_packages_are_valid_by_kfps_own_schema(path):
    documents = list(yaml.safe_load_all(path.read_text()))
    spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    assert spec.root.dag.tasks
    for document in documents[1:]:
        json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())


def test_kubernetes_part_is_valid_by_kfps_own_schema(kubeflow):
    json_format.ParseDict(kubeflow[0], pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(kubeflow[1], pipeline_spec_pb2.PlatformSpec())
    executors = kubeflow[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) == len(WITH_A_MODEL | WITHOUT)
    for config in executors.values():
        json_format.ParseDict(config, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_pods_are_valid_by_kubernetes_own_schemas(kubeflow, version):
    made = pods(kubeflow)
    assert set(made) == WITH_A_MODEL | WITHOUT
    for pod in made.values():
        kubernetes_validate.validate(pod, version, strict=True)
    made["evaluate"]["spec"]["tolerations"][0]["effects"] = "NoSchedule"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(made["evaluate"], version, strict=True)


def test_hardware_goes_to_the_tasks_that_load_a_model(kubeflow):
    made = pods(kubeflow)
    for name in WITH_A_MODEL:
        spec = made[name]["spec"]
        resources = spec["containers"][0]["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == "2"
        assert resources["requests"]["cpu"] == "8"
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert int(resources["limits"]["memory"].removesuffix("Gi")) > 16  # 8B bfloat16 pass through it
        assert spec["nodeSelector"] == {
            "pool": "gpu",
            "example.com/zone": "a",
            "cloud.google.com/gke-spot": "true",
        }
        assert spec["activeDeadlineSeconds"] == 5400
        assert [(t["key"], t["operator"], t.get("value"), t["effect"]) for t in spec["tolerations"]] == [
            ("nvidia.com/gpu", "Exists", None, "NoSchedule"),
            ("team", "Equal", "nlp", "NoExecute"),
            ("cloud.google.com/gke-spot", "Equal", "true", "NoSchedule"),
        ]
    for name in WITHOUT:
        spec = made[name]["spec"]
        assert spec["containers"][0]["resources"]["limits"] == {"memory": "4Gi"}
        assert spec["nodeSelector"] == {}
        assert "activeDeadlineSeconds" not in spec


def test_secrets_are_named_where_they_are_used_and_nowhere_else(kubeflow):
    for name, pod in pods(kubeflow).items():
        env = {
            e["name"]: e["valueFrom"]["secretKeyRef"]
            for e in pod["spec"]["containers"][0]["env"]
            if "valueFrom" in e
        }
        if name in WITH_A_MODEL | {"data-prep", "temperature-scaling", "promote", "record-end"}:
            assert env == {
                "HF_TOKEN": {"name": "hub", "key": "token"},
                "PROXY": {"name": "net", "key": "proxy"},
            }
        else:
            assert env == {}


def test_volumes_are_mounted_where_they_are_needed(kubeflow):
    for name, pod in pods(kubeflow).items():
        mounts = {m["name"]: m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
        shared = SHARED_MEMORY if name in FINE_TUNING else {}
        assert mounts == {"data": "/data", "runs": "/var/runs", **shared}
        if shared:
            (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "shared-memory"]
            assert volume["emptyDir"] == {"medium": "Memory"}


def test_downloads_and_checkpoints_outlive_the_pod_where_a_claim_keeps_them(kubeflow):
    for name, pod in pods(kubeflow).items():
        env = {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"] if "value" in e}
        kept = {"CALIB_CACHE": "/data/cache/calib", "HF_HOME": "/data/cache/huggingface"}
        assert env == (kept if name in WITH_A_MODEL else {})


@pytest.mark.slow
@pytest.mark.parametrize("provider", SPOT)
def test_spot_nodes_are_asked_for_as_each_provider_marks_them(provider, tmp_path):
    made = pods(compiled(package("kubeflow", KubeflowSettings(spot=provider)), tmp_path))
    spot, spec = SPOT[provider], made["evaluate"]["spec"]
    assert spec["nodeSelector"] == {spot.key: spot.value}
    assert [t["key"] for t in spec["tolerations"]] == ([spot.key] if spot.tainted else [])
    assert made["data-prep"]["spec"]["nodeSelector"] == {}
    for name, pod in made.items():  # without a claim checkpoints outlive the pod in the outputs' bucket
        env = {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"] if "value" in e}
        assert env == ({"CALIB_CHECKPOINTS": "output"} if name in FINE_TUNING else {})


def test_checkpoints_of_spot_machines_go_to_the_outputs_bucket(tmp_path):
    settings = VertexSettings(strategy="SPOT", model_parameters="1.5B", accelerator="nvidia-l4")
    documents = compiled(package("vertex", settings), tmp_path)
    asked = json.dumps(documents).count('{"name": "CALIB_CHECKPOINTS", "value": "output"}')
    assert asked == len(FINE_TUNING)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_pipeline_compiles_for_every_platform_without_settings(target, name, tmp_path):
    documents = compiled(package(target, TARGETS[target].settings(), pipeline=name), tmp_path)
    json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    assert all("retryPolicy" in task for task in tasks(documents).values() if is_container(documents, task))
    executors = documents[0]["deploymentSpec"]["executors"].values()
    assert not any("importer" in executor for executor in executors)
    mounts = [
        mount["mountPath"]
        for document in documents[1:]
        for config in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
        for mount in config["emptyDirMounts"]
    ]
    shared = set(SHARED_MEMORY.values()) if target == "kubeflow" and name != "score-large" else set()
    assert set(mounts) == shared


def is_container(documents: list[dict[str, Any]], task: dict[str, Any]) -> bool:
    """Whether a task runs a container, and no tasks of its own."""
    return "executorLabel" in documents[0]["components"][task["componentRef"]["name"]]


@pytest.mark.slow
def test_requests_follow_the_size_of_the_model(tmp_path):
    found = []
    for size in ("135M", "1.5B", "8B"):
        made = pods(compiled(package("kubeflow", KubeflowSettings(model_parameters=size)), tmp_path))
        found.append(
            {
                name: int(made[name]["spec"]["containers"][0]["resources"]["limits"]["memory"][:-2])
                for name in ("evaluate", "cft-finetune", "dpo-align")
            }
        )
    for memory in found:
        assert memory["evaluate"] < memory["cft-finetune"] < memory["dpo-align"]
    for smaller, larger in itertools.pairwise(found):
        assert all(smaller[name] < larger[name] for name in smaller)
    assert found[2]["evaluate"] >= 8e9 * 4 / 2**30


def test_vertex_package_holds_nothing_of_kubernetes(vertex):
    assert len(vertex) == 1
    json_format.ParseDict(vertex[0], pipeline_spec_pb2.PipelineSpec())
    text = yaml.safe_dump(vertex[0]).lower()
    for word in ("kubernetes", "nvidia.com", "platforms:", "nodeselector"):
        assert word not in text


def test_vertex_tasks_with_a_model_are_custom_jobs(vertex):
    from google.cloud import aiplatform_v1

    launched = {
        label.removeprefix("exec-")
        for label, executor in vertex[0]["deploymentSpec"]["executors"].items()
        if "--payload" in executor.get("container", {}).get("args", [])
    }
    assert launched == WITH_A_MODEL
    for name in WITH_A_MODEL:
        given = vertex[0]["components"][f"comp-{name}"]["inputDefinitions"]["parameters"]
        job = {
            "worker_pool_specs": given["worker_pool_specs"]["defaultValue"],
            "scheduling": {
                field: given[field]["defaultValue"] for field in ("timeout", "strategy", "max_wait_duration")
            },
            "service_account": given["service_account"]["defaultValue"],
            "network": given["network"]["defaultValue"],
        }
        spec = aiplatform_v1.CustomJobSpec.from_json(json.dumps(job), ignore_unknown_fields=False)
        (pool,) = spec.worker_pool_specs
        assert pool.machine_spec.machine_type == "g2-standard-12"
        assert pool.machine_spec.accelerator_type.name == "NVIDIA_L4"
        assert (pool.machine_spec.accelerator_count, pool.replica_count) == (1, 1)
        assert (pool.disk_spec.boot_disk_type, pool.disk_spec.boot_disk_size_gb) == ("pd-ssd", 200)
        assert spec.scheduling.strategy.name == "FLEX_START"
        assert spec.scheduling.timeout.total_seconds() == 6 * 3600
        assert spec.scheduling.max_wait_duration.total_seconds() == 2 * 3600
        assert spec.service_account == "calib@team-1.iam.gserviceaccount.com"
        assert spec.network == "projects/123/global/networks/inner"


def test_vertex_keeps_the_components_own_inputs_and_outputs(vertex):
    neutral = yaml.safe_load((FOLDER / "restore-calibration.yaml").read_text())["components"]
    for name in WITH_A_MODEL:
        ours, theirs = neutral[f"comp-{name}"], vertex[0]["components"][f"comp-{name}"]
        for part in ("parameters", "artifacts"):
            assert (
                ours["inputDefinitions"].get(part, {}).keys()
                <= theirs["inputDefinitions"].get(part, {}).keys()
            )
            assert ours["outputDefinitions"].get(part, {}).keys() <= theirs["outputDefinitions"][part].keys()


@pytest.mark.parametrize("name", TARGETS)
def test_one_definition_gives_every_package_the_same_parameters(name, request):
    documents = request.getfixturevalue(name)
    expected = {
        key: (given.type, given.default) for key, given in restore_calibration.component_spec.inputs.items()
    }
    loaded = build(define, TARGETS[name].place(TARGETS[name].settings()), name="again").component_spec.inputs
    assert {key: (given.type, given.default) for key, given in loaded.items()} == expected
    assert documents[0]["root"]["inputDefinitions"]["parameters"].keys() == expected.keys()
    assert tasks(documents).keys() == WITH_A_MODEL | WITHOUT


@pytest.mark.parametrize("name", TARGETS)
def test_tasks_are_cached_by_what_is_deterministic_and_retried(name, request):
    for task_name, task in tasks(request.getfixturevalue(name)).items():
        component = next(c for c in sorted(KINDS, key=len, reverse=True) if task_name.startswith(c))
        assert task["cachingOptions"].get("enableCache", False) is KINDS[component].cached
        assert task["retryPolicy"] == {
            "maxRetryCount": 3 if name == "kubeflow" else 2,
            "backoffDuration": "60s",
            "backoffFactor": 2.0,
            "backoffMaxDuration": f"{30 * 24 * 3600}s" if name == "kubeflow" else "600s",
        }
    assert not KINDS["record-end"].cached


@pytest.mark.parametrize(("retries", "hours"), [(1, 24.0), (2, 300.0), (10, 100.0)])
def test_kubeflow_has_time_for_all_attempts(retries, hours):
    """Argo counts from the start of the first attempt, and stops an attempt that is still running then."""
    needed_s = (retries + 1) * hours * 3600 + sum(60 * 2**attempt for attempt in range(retries))
    assert Kubeflow(KubeflowSettings(retries=retries, timeout_hours=hours)).backoff_limit_s() >= needed_s


def test_retries_can_be_turned_off(tmp_path):
    documents = compiled(package("kubeflow", KubeflowSettings(retries=0)), tmp_path)
    assert not any("retryPolicy" in task for task in tasks(documents).values())


def test_a_run_here_has_neither_retries_nor_an_exit_handler():
    documents = [yaml.safe_load((FOLDER / "restore-calibration.yaml").read_text())]
    assert tasks(documents).keys() == WITH_A_MODEL | WITHOUT - {"record-end"}
    assert not any("retryPolicy" in task for task in tasks(documents).values())
    assert "exit-handler" not in (FOLDER / "restore-calibration.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (KubeflowSettings, {"accelerator": "gpu"}, "`accelerator` is 'gpu'; give one of .*'nvidia-l4'"),
        (KubeflowSettings, {"count": 2}, "`count` is 2 without an `accelerator`; name one of"),
        (
            KubeflowSettings,
            {"model_parameters": "8 big"},
            "model_parameters is '8 big'; give .* such as 135M",
        ),
        (KubeflowSettings, {"model_parameters": "400B"}, "400B, more than the 73B"),
        (
            KubeflowSettings,
            {"model_parameters": "8B", "accelerator": "nvidia-tesla-t4"},
            "has 14 GiB, too little .* give one of nvidia-tesla-a100, nvidia-a100-80gb",
        ),
        (
            KubeflowSettings,
            {"model_parameters": "70B", "accelerator": "nvidia-a100-80gb"},
            "no GPU here holds it whole",
        ),
        (
            KubeflowSettings,
            {"model_parameters": "8B", "accelerator": "nvidia-a100-80gb", "memory": "8Gi"},
            r"`memory` is '8Gi', but .* needs \d+Gi beside the GPU",
        ),
        (KubeflowSettings, {"model_parameters": "8B", "memory": "16Gi"}, r"needs \d+Gi on the CPU"),
        (KubeflowSettings, {"memory": "much"}, "`memory` is 'much'; give a quantity such as 64Gi"),
        (KubeflowSettings, {"cpu": "-1"}, "`cpu` is '-1'"),
        (KubeflowSettings, {"tolerations": "gpu=NoSchedule"}, "`tolerations` is .*; give key:EFFECT"),
        (KubeflowSettings, {"node_selector": "pool"}, "`node_selector` is 'pool'; give key=value"),
        (KubeflowSettings, {"secrets": "HF_TOKEN=hf_abc"}, "never its value"),
        (KubeflowSettings, {"pvc": "work:relative"}, "`pvc` is 'work:relative'; give claim:/path"),
        (KubeflowSettings, {"spot": "gke", "retries": 0}, "`spot` is 'gke' and `retries` is 0"),
        (KubeflowSettings, {"run_records": "/runs"}, "ends with the pod; mount a claim there"),
        (
            KubeflowSettings,
            {"cache": "/cache", "pvc": "a:/data"},
            "`cache` is '/cache', which ends with the pod",
        ),
        (KubeflowSettings, {"timeout_hours": -1.0}, "`timeout_hours` is -1.0"),
        (VertexSettings, {"machine_type": "huge"}, "`machine_type` is 'huge'; give one of"),
        (
            VertexSettings,
            {"machine_type": "n1-standard-8", "accelerator": "nvidia-l4"},
            "does not go with 1 x nvidia-l4; these do: g2-standard-4, g2-standard-8",
        ),
        (
            VertexSettings,
            {"accelerator": "nvidia-l4", "count": 3},
            "no machine goes with 3 x nvidia-l4; of nvidia-l4 there are machines with 1, 2, 4, 8",
        ),
        (
            VertexSettings,
            {"machine_type": "a2-highgpu-1g"},
            "'a2-highgpu-1g' does not go with no accelerator",
        ),
        (
            VertexSettings,
            {"machine_type": "e2-standard-4", "model_parameters": "8B"},
            r"does not go with no accelerator and \d+ GiB of memory; these do:",
        ),
        (VertexSettings, {"strategy": "FLEX_START"}, "the queue is for nvidia-l4"),
        (
            VertexSettings,
            {"strategy": "FLEX_START", "accelerator": "nvidia-l4", "timeout_hours": 200.0},
            "give 168 or less",
        ),
        (VertexSettings, {"max_wait_hours": 3.0}, "`strategy` 'STANDARD' doesn't wait"),
        (VertexSettings, {"strategy": "SPOT", "retries": 0}, "`strategy` is 'SPOT' and `retries` is 0"),
        (VertexSettings, {"network": "default"}, "give projects/NUMBER/global/networks/NAME"),
        (VertexSettings, {"service_account": "me@example.com"}, "give NAME@PROJECT.iam"),
        (VertexSettings, {"run_records": "/var/runs"}, "give a folder in a bucket"),
        (
            VertexSettings,
            {
                "accelerator": "nvidia-h200-141gb",
                "count": 8,
                "boot_disk_type": "pd-ssd",
            },
            "`boot_disk_type` 'pd-ssd' is not for a3-ultragpu-8g; give hyperdisk-balanced",
        ),
        (
            VertexSettings,
            {"accelerator": "nvidia-h200-141gb", "count": 8, "model_parameters": "33B"},
            r"`boot_disk_gb` is 100, .* need 172; give 172",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_what_would(settings, given, message):
    with pytest.raises(ConfigError, match=message):
        settings(**given)


def test_what_may_be_a_secret_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        KubeflowSettings(secrets="HF_TOKEN=hf_abc")
    assert "hf_abc" not in str(caught.value)


def test_all_mistakes_are_told_together():
    with pytest.raises(ConfigError) as caught:
        VertexSettings(count=0, strategy="FAST", network="default", boot_disk_gb=1)
    for name in ("`count` is 0", "`strategy` is 'FAST'", "`network` is 'default'", "`boot_disk_gb` is 1"):
        assert name in str(caught.value)


@pytest.mark.parametrize("machine", ["n1-standard-4", "g2-standard-24", "a2-ultragpu-8g", "a3-highgpu-2g"])
def test_every_machine_is_chosen_where_it_is_the_one_asked_for(machine):
    for accelerator, counts in MACHINES[machine].gpus.items():
        for count in counts:
            settings = VertexSettings(accelerator=accelerator, count=count, machine_type=machine)
            assert machine in settings.fitting()


def test_smallest_machine_that_fits_is_taken():
    assert VertexSettings(accelerator="nvidia-l4").machine() == "g2-standard-4"
    assert VertexSettings(accelerator="nvidia-a100-80gb", model_parameters="8B").machine() == "a2-ultragpu-1g"
    on_cpu = VertexSettings(model_parameters="1.5B")
    larger = VertexSettings(model_parameters="3B")
    assert MACHINES[on_cpu.machine()].gib < MACHINES[larger.machine()].gib
    assert MACHINES[on_cpu.machine()].gib * 0.9 >= on_cpu.host_gib("lora") > on_cpu.least_gib()


@pytest.mark.parametrize("settings", [KubeflowSettings, VertexSettings])
def test_settings_can_all_be_given_as_flags(settings):
    assert all(parameter.description for parameter in parameters_of(settings))


def test_commands_settings_reach_the_package(tmp_path, capsys):
    output = tmp_path / "package.yaml"
    flags = ["--accelerator", "nvidia-l4", "--model-parameters", "1.5B", "--strategy", "SPOT"]
    given = ["pipeline", "compile", "--target", "vertex", *flags, "--output", str(output)]
    assert cli.main([*given, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"package": str(output)}
    assert "fine-tuning takes" in shown.err  # of eight questions' length, fewer fit
    text = output.read_text()
    assert "accelerator_type: NVIDIA_L4" in text
    assert "defaultValue: SPOT" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "vertex", "--spot", "gke"], "--spot is for kubeflow"),
        (["--machine-type", "n1-standard-4"], "--machine-type is for vertex"),
        (["--count", "2"], "--count is 2 without an --accelerator"),
        (["--model-parameters", "8B", "--accelerator", "nvidia-tesla-v100"], "too little"),
    ],
)
def test_command_refuses_with_exit_code_2_and_writes_nothing(flags, message, tmp_path, capsys):
    output = tmp_path / "package.yaml"
    assert cli.main(["pipeline", "compile", *flags, "--output", str(output)]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not output.exists()


@pytest.mark.parametrize("name", ["kubeflow", "vertex"])
def test_data_snapshot_is_an_input_of_the_task_that_reads_the_data(name, request):
    given = tasks(request.getfixturevalue(name))["data-prep"]["inputs"]["parameters"]["data_snapshot"]
    assert given == {"componentInputParameter": "pipelinechannel--data_snapshot"}


@pytest.mark.slow
def test_data_are_read_anew_where_the_snapshot_changes(tmp_path):
    from kfp import dsl

    from calib_components import data_prep
    from calib_core.data.questions import Question, read_questions, write_questions

    source = tmp_path / "questions.parquet"

    def define_reading(questions, data_snapshot=""):
        data_prep(questions=questions, data_snapshot=data_snapshot)

    define_reading.__annotations__ = {"questions": str, "data_snapshot": str}  # types, which KFP reads
    reading = dsl.pipeline(name="reading")(define_reading)

    def read(snapshot: str) -> list[int]:
        """How many questions each reading so far has found."""
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(tmp_path / "root"),
            enable_caching=True,
        )
        reading(questions=str(source), data_snapshot=snapshot)
        folders = (tmp_path / "root").glob("*/data-prep/data")
        folds = ("fit", "calibration", "test")
        return sorted(
            sum(len(read_questions(folder / f"{fold}.parquet")[0]) for fold in folds) for folder in folders
        )

    def put(n: int) -> None:
        choices = ("yes", "no", "maybe")
        made = [Question(id=str(i), question=f"Is {i} so?", choices=choices, answer=i % 3) for i in range(n)]
        write_questions(made, source)

    put(40)
    assert read("monday") == [40]
    put(60)
    assert read("monday") == [40]  # the name is the same: KFP's cache answers
    assert read("tuesday") == [40, 60]


@pytest.mark.slow
@pytest.mark.parametrize("error", ["", "mistake"])
def test_end_of_a_run_is_recorded(stage, error, tmp_path):  # noqa: F811
    records = tmp_path / "records"
    pipeline = build(
        define, ClusterPlatform(Settings(retries=0, run_records=str(records))), name="restore-calibration"
    )
    stage.write({"start": "calibrated", "error": error})
    local.init(
        local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"), raise_on_error=False
    )
    source = "https://me:pw@data.example/q.jsonl?sig=1234"
    cluster = json.dumps({"platform": "kubeflow", "note": 'two\nlines, "quoted" \\'})
    pipeline(model="/models/start", questions=source, target_ece=0.11, cluster=cluster)
    (path,) = records.glob("restore-calibration-*.json")
    record = json.loads(path.read_text())
    assert record["state"] == ("FAILED" if error else "SUCCEEDED")
    assert record["pipeline"] == "restore-calibration"
    assert record["parameters"]["model"] == "/models/start"
    assert record["parameters"]["target_ece"] == 0.11
    assert record["parameters"]["align"] is False
    assert record["parameters"]["cluster"] == cluster
    assert record["parameters"]["questions"] == "https://***@data.example/q.jsonl?***"
    assert record["parameters"].keys() == restore_calibration.component_spec.inputs.keys()
    (artifact,) = (tmp_path / "root").glob("*/record-end/record")
    assert json.loads(artifact.read_text()) == record

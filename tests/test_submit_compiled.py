"""Submitting one of our own pipelines without a package, and places that the tasks can't reach."""

from __future__ import annotations

import json

import pytest
import yaml
from kfp_standin import KfpServer, serving

from calib_core.errors import ConfigError
from calib_pipelines.clusters import base as clusters
from calib_pipelines.commands import flags as cluster_flags
from calib_pipelines.commands import main as cli
from calib_pipelines.compile import DEFINITIONS
from calib_pipelines.packages.submitting import PLACES, check_accounts, check_places
from calib_pipelines.targets.compiling import compile_package
from calib_pipelines.targets.kubeflow import KubeflowSettings
from calib_pipelines.targets.vertex import VertexSettings

GIVEN = ["--model", "gs://b/m", "--questions", "gs://b/q.jsonl"]
ACCOUNT = "calib@team-1.iam.gserviceaccount.com"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A stand-in; the user's own settings are not seen, and packages go to a cache of the test's own."""
    for name in ("KFP_TOKEN", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(clusters, "RETRY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    with serving(KfpServer()) as made:
        yield made


def submit(server, capsys, *arguments):
    """Exit code, the JSON object that was printed or None, and standard error."""
    capsys.readouterr()
    given = [
        "pipeline",
        "submit",
        "--target",
        "kubeflow",
        "--host",
        server.url,
        "--json",
        "--name",
        "nightly",
    ]
    code = cli.main([*given, *arguments])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else None, printed.err


def test_pipeline_is_compiled_with_the_given_settings(server, capsys):
    hardware = ["--accelerator", "nvidia-a100-80gb", "--model-parameters", "8B", "--pass-tokens", "1024"]
    code, result, told = submit(server, capsys, *hardware, "--service-account", "runner", *GIVEN)
    assert (code, result["started"]) == (0, True)
    (run,) = server.stores["runs"].values()
    assert run["service_account"] == "runner"
    assert run["runtime_config"]["parameters"] == {
        "model": "gs://b/m",
        "questions": "gs://b/q.jsonl",
        "pass_tokens": 1024,
    }
    ((pipeline, *_),) = server.packages.values()
    resources = pipeline["deploymentSpec"]["executors"]["exec-evaluate"]["container"]["resources"]
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert "compiled restore-calibration for kubeflow with the image calib:" in told
    assert "mind:" not in told  # the parameters keep to what the hardware holds


@pytest.mark.slow
def test_same_settings_find_the_run_and_others_are_refused(server, capsys):
    assert submit(server, capsys, *GIVEN)[1]["started"] is True
    assert submit(server, capsys, *GIVEN)[1]["started"] is False
    code, _, told = submit(server, capsys, *GIVEN, "--retries", "5")
    assert (code, "choose another --name" in told) == (2, True)
    assert len(server.stores["runs"]) == 1


@pytest.mark.slow
def test_another_pipeline_has_its_own_flags(server, capsys):
    given = ["--stream", "gs://b/stream", "--champion", "gs://b/champion", "--model-name", "ours"]
    assert submit(server, capsys, "--pipeline", "recalibrate", *given)[0] == 0
    (run,) = server.stores["runs"].values()
    assert run["runtime_config"]["parameters"]["champion"] == "gs://b/champion"


def test_what_hardware_cannot_hold_is_told(server, capsys):
    hardware = ["--accelerator", "nvidia-a100-80gb", "--model-parameters", "8B"]
    code, _, told = submit(server, capsys, *hardware, *GIVEN)
    assert code == 0
    assert "mind: on nvidia-a100-80gb" in told
    assert "pass-tokens" in told or "pass_tokens" in told
    assert "dpo_batch_size" not in told  # nothing is aligned
    code, _, told = submit(server, capsys, "--accelerator", "nvidia-l4", "--model-parameters", "8B", *GIVEN)
    assert (code, "has 22 GiB, too little" in told) == (2, True)


def test_settings_are_refused_for_a_package(server, capsys, tmp_path):
    package = compile_package("kubeflow", KubeflowSettings(), pipeline="restore-calibration")
    with pytest.raises(SystemExit, match="2"):
        submit(server, capsys, "--package", str(package), "--accelerator", "nvidia-l4", *GIVEN)
    assert f"--accelerator: for compiling, and {package} is compiled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/models/m"], "model is '/models/m': no volume is mounted there; compile with --pvc"),
        (["--pvc", "a:/data", "--model", "/models/m"], "only /data is mounted there"),
        (["--model", "https://host/m"], "tasks there read gs://, s3://, minio:// and no other URI"),
        (["--model", "hf://owner/name"], "no other URI"),
        (["--model", "../m"], "is no bucket's URI (gs://, s3://, minio://), no mounted path and no hub id"),
        (["--model", "here"], "model is 'here': lies on this machine, where no task sees it"),
        (["--model", "m", "--epochs", "0"], "epochs is 0"),
        (["--model", "m", "--machine-type", "n1-standard-4"], "--machine-type is for vertex"),
    ],
)
def test_what_no_task_could_use_is_refused_before_anything_is_sent(
    server, capsys, tmp_path, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    code, _, told = submit(server, capsys, "--questions", "gs://b/q.jsonl", *flags)
    assert (code, message in told) == (2, True), told
    assert not server.stores["runs"]
    assert not server.packages


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    """A package for Kubeflow with a claim at `/models`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return compile_package("kubeflow", KubeflowSettings(pvc="a:/models"), pipeline="score-large")


@pytest.mark.parametrize(
    "place",
    [
        *("owner/name", "name", "owner/name@v1.0", "owner/name@refs/pr/3", "gs://b/m@2", "s3://b/m"),
        *("minio://mlpipeline/v2/artifacts/m", "/models/m", "/models", "/gcs/b/m", "/minio/b/m", ""),
    ],
)
def test_places_that_tasks_on_kubeflow_reach(mounted, place):
    check_places("kubeflow", mounted, "score-large", {"model": place, "questions": "q", "preset": "/x"})


@pytest.mark.parametrize("place", ["/modelsx/m", "file:///models/m", "owner/name/more", "~/m"])
def test_places_that_tasks_on_kubeflow_do_not_reach(mounted, place):
    with pytest.raises(ConfigError, match=r"model is .*; questions is '/q'"):
        check_places("kubeflow", mounted, "score-large", {"model": place, "questions": "/q"})


def test_only_google_s_buckets_are_reached_on_vertex(mounted):
    check_places(
        "vertex", mounted, "recalibrate", {"stream": "gs://b/s", "champion": "/gcs/b/c", "model": "m"}
    )
    for place in ("s3://b/s", "minio://b/s", "/minio/b/s", "owner/name"):  # a stream is on no hub
        with pytest.raises(ConfigError, match="target vertex: stream is"):
            check_places("vertex", mounted, "recalibrate", {"stream": place})


def test_of_other_people_s_pipelines_nothing_is_known(mounted):
    check_places("vertex", mounted, "theirs", {"model": "/anywhere"})


@pytest.mark.parametrize("name", DEFINITIONS)
def test_places_are_parameters_of_the_pipelines(name):
    from calib_pipelines.compile import PIPELINES

    inputs = PIPELINES[name].component_spec.inputs
    said = {
        key for key, given in inputs.items() if "URI" in given.description or "prefix" in given.description
    }
    assert said == PLACES[name] & inputs.keys()


def test_custom_jobs_need_the_account_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path))
    without, given = (
        compile_package("vertex", VertexSettings(service_account=account), pipeline="score-large")
        for account in ("", ACCOUNT)
    )
    check_accounts(given)
    with pytest.raises(ConfigError, match="the custom jobs of score-shard name no service account"):
        check_accounts(without)


@pytest.mark.slow
def test_vertex_pipeline_compiled_at_submission_has_the_account_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path))
    given = ["pipeline", "submit", "--target", "vertex", "--project", "p-1", "--region", "europe-west4"]
    given += ["--pipeline-root", "gs://bucket/calib", "--service-account", ACCOUNT, *GIVEN]
    assert cli.main(given) == 2
    assert "is in no registry that Vertex could pull it from" in capsys.readouterr().err
    monkeypatch.setattr(cluster_flags, "IMAGE", "europe-west4-docker.pkg.dev/p-1/team/calib:1")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    assert cli.main(given) == 2
    assert "no Google credentials" in capsys.readouterr().err  # all else was found usable
    (path,) = (tmp_path / "packages").iterdir()
    components = yaml.safe_load(path.read_text())["components"]
    accounts = {
        name: parameters["service_account"]["defaultValue"]
        for name, component in components.items()
        if "worker_pool_specs" in (parameters := component.get("inputDefinitions", {}).get("parameters", {}))
    }
    assert len(accounts) == 6
    assert set(accounts.values()) == {ACCOUNT}

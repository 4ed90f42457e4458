"""`calib pipeline submit` on Kubeflow, against a stand-in for KFP's API server on loopback."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
import urllib3
import yaml
from kfp_standin import KfpServer, error, fault, serving
from rule_packages import PAIRS
from small_package import write_others_package, write_small_package

from calib_pipelines.clusters import base as clusters
from calib_pipelines.clusters import kubeflow_api
from calib_pipelines.commands import flags as cluster_flags
from calib_pipelines.commands import main as cli
from calib_pipelines.commands import submit

SUBMIT = ["pipeline", "submit", "--target", "kubeflow"]
BUSY = (503, error(14, "upstream connect error"))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return write_small_package(tmp_path_factory.mktemp("package") / "small.yaml")


@pytest.fixture
def server(monkeypatch, tmp_path, package):
    """A stand-in; waits are short, and nothing of the user's own settings is seen."""
    for name in ("KFP_TOKEN", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(clusters, "RETRY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(clusters, "LOOKUP_PAUSES_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    monkeypatch.setitem(globals(), "SUBMIT", [*SUBMIT, "--package", str(package)])
    with serving(KfpServer()) as made:
        yield made


def call(server, capsys, *arguments, name="nightly"):
    """Exit code, the JSON object that was printed or None, and standard error."""
    capsys.readouterr()
    given = [*SUBMIT, "--host", server.url, "--json", *arguments]
    code = cli.main([*given, "--name", name] if name else given)
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else None, printed.err


def test_run_is_started_with_what_was_given(server, capsys, package):
    code, result, told = call(server, capsys, "--model", "gs://models/m", "--epochs", "3", "--no-align")
    assert code == 0
    (run,) = server.named("runs", "nightly")
    assert run["runtime_config"]["parameters"] == {"model": "gs://models/m", "epochs": 3, "align": False}
    assert result["id"] == run["run_id"]
    assert result["started"] is True
    assert result["link"] == f"{server.url}/#/runs/details/{run['run_id']}"
    assert result["link"] in told
    (version,) = server.stores["versions"].values()
    assert version["pipeline_version_id"] == run["pipeline_version_reference"]["pipeline_version_id"]
    written = list(yaml.safe_load_all(package.read_text()))
    assert server.packages[version["display_name"]] == written
    (experiment,) = server.stores["experiments"].values()
    assert experiment["display_name"] == "small"


def test_default_names_differ_from_run_to_run(server, capsys):
    names = {call(server, capsys, "--model", "m", name=None)[1]["name"] for _ in range(2)}
    assert len(names) == len(server.stores["runs"]) == 2
    assert all(re.fullmatch(r"small-\d{8}-\d{6}-[0-9a-f]{4}", name) for name in names)


def test_flags_go_before_the_file(server, capsys, tmp_path):
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps({"model": "m", "epochs": 2, "target_ece": 0.1}))
    call(server, capsys, "--parameters", str(path), "--epochs", "4")
    (run,) = server.stores["runs"].values()
    assert run["runtime_config"]["parameters"] == {"model": "m", "epochs": 4, "target_ece": 0.1}


def test_settings_reach_the_run(server, capsys):
    server.multi_user = True
    options = ["--namespace", "team", "--experiment", "trial", "--pipeline-root", "gs://b/x/"]
    call(server, capsys, "--model", "m", "--service-account", "runner", *options)
    (run,) = server.stores["runs"].values()
    (experiment,) = server.named("experiments", "trial")
    (pipeline,) = server.stores["pipelines"].values()
    assert run["experiment_id"] == experiment["experiment_id"]
    assert experiment["namespace"] == pipeline["namespace"] == "team"
    assert run["runtime_config"]["pipeline_root"] == "gs://b/x"
    assert run["service_account"] == "runner"


def test_package_is_uploaded_once_per_content(server, capsys, tmp_path, package):
    call(server, capsys, "--model", "m", name="one")
    call(server, capsys, "--model", "m", name="two")
    assert len(server.sent("POST", "upload_version")) == 1
    other = tmp_path / "other.yaml"
    other.write_text(package.read_text().replace("python:3.11", "python:3.12"))
    assert call(server, capsys, "--model", "m", "--package", str(other), name="three")[0] == 0
    assert len(server.stores["versions"]) == 2
    assert len(server.stores["pipelines"]) == len(server.stores["experiments"]) == 1


def test_same_name_finds_the_run_past_the_first_page(server, capsys):
    for name in ("one", "two", "three", "nightly"):
        call(server, capsys, "--model", "m", name=name)
    code, result, _ = call(server, capsys, "--model", "m")
    assert code == 0
    assert result["started"] is False
    assert len(server.named("runs", "nightly")) == 1


def test_same_name_with_other_parameters_is_refused(server, capsys):
    call(server, capsys, "--model", "m")
    code, _, told = call(server, capsys, "--model", "other")
    assert code == 2
    assert "choose another --name" in told
    assert len(server.stores["runs"]) == 1


def test_wait_says_each_change_and_ends_with_the_run(server, capsys):
    server.tasks = [("data-prep", "SUCCEEDED")]
    code, result, told = call(server, capsys, "--model", "m", "--wait")
    assert code == 0
    assert result["state"] == "succeeded"
    assert result["tasks"] == {"data-prep": "succeeded"}
    states = [line for line in told.splitlines() if line.startswith("[nightly]")]
    assert states == ["[nightly] pending", "[nightly] running", "[nightly] succeeded"]
    assert "[data-prep] succeeded" in told


@pytest.mark.parametrize(
    ("last", "state", "error"),
    [
        ("FAILED", "failed", "failed: evaluate, promote; KFP gives no further details; see the logs there"),
        ("CANCELED", "cancelled", ""),
        ("SKIPPED", "skipped", ""),
    ],
)
def test_wait_ends_with_1_where_the_run_ends_badly(server, capsys, last, state, error):
    server.plan = ["RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED", "RUNNING", "CANCELING", last]
    server.tasks = [("data-prep", "SUCCEEDED"), ("evaluate", "FAILED"), ("promote", "FAILED")]
    code, result, told = call(server, capsys, "--model", "m", "--wait")
    assert code == 1
    assert result["state"] == state
    assert result["error"] == error
    states = [line.partition("] ")[2] for line in told.splitlines() if line.startswith("[nightly]")]
    assert states == ["pending", "running", "paused", "running", "cancelling", state]


def test_of_tasks_with_one_name_the_worst_state_is_shown(server, capsys):
    server.tasks = [
        ("score-shard", "SUCCEEDED"),
        ("score-shard", "FAILED"),
        ("score-shard", "RUNNING"),
        ("merge", "RUNTIME_STATE_UNSPECIFIED"),
    ]
    _, result, _ = call(server, capsys, "--model", "m", "--wait")
    assert result["tasks"] == {"score-shard": "failed", "merge": "skipped"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": 3}, "input parameter model requires type string"),
        ({"model": "m", "epochs": True}, "input parameter epochs requires type double or integer"),
        ({"model": "m", "align": "yes"}, "input parameter align requires type bool"),
        ({"model": "m", "typo": 1}, "parameter(s) provided are not required by pipeline: typo"),
        ({}, "parameter model is not optional, yet has neither default value nor user provided value"),
    ],
)
def test_what_the_server_refuses_of_parameters_is_said_as_it_says_it(
    server, capsys, monkeypatch, tmp_path, given, told
):
    monkeypatch.setattr(cluster_flags, "check_parameters", lambda package, values: None)
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps(given))
    code, _, said = call(server, capsys, "--parameters", str(path))
    assert (code, told in said) == (2, True)
    assert not server.stores["runs"]


def test_a_field_that_the_server_does_not_know_makes_a_package_unknown_to_it(
    server, capsys, tmp_path, package
):
    other = tmp_path / "other.yaml"
    other.write_text(package.read_text().replace("defaultPipelineRoot", "futureField") + "\nfutureField: 1\n")
    with pytest.raises(SystemExit, match="2"):
        call(server, capsys, "--model", "m", "--package", str(other))
    assert "futureField" in capsys.readouterr().err
    assert not server.requests


# What a package must be for the server's release


def test_package_that_the_servers_release_cannot_run_is_refused_and_another_release_takes_it(
    server, capsys, tmp_path
):
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump_all(PAIRS["merged-artifact"][0]()))
    parameters = tmp_path / "parameters.json"
    parameters.write_text('{"text": "a"}')
    given = ["--package", str(path), "--parameters", str(parameters)]
    server.tag_name = "2.16.1"
    code, _, told = call(server, capsys, *given)
    assert (code, "merged-artifact: " in told, "Kubeflow Pipelines 2.16:" in told) == (2, True, True)
    assert len(server.requests) == 1
    server.tag_name = "unknown"
    assert call(server, capsys, *given)[0] == 2
    assert call(server, capsys, *given, "--backend-version", "2.17")[0] == 0
    server.tag_name = "2.17.0"
    assert call(server, capsys, *given)[0] == 0


@pytest.mark.parametrize("version", ["2.5.0", "2.4.1", "1.8.22"])
def test_servers_that_are_too_old_are_refused(server, capsys, version):
    server.tag_name = version
    code, _, told = call(server, capsys, "--model", "m")
    assert (code, "2.14 or newer is needed" in told) == (2, True)
    assert not server.stores["pipelines"]


def test_what_the_user_should_mind_is_said_before_the_run_starts(server, capsys, tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump_all(PAIRS["retry-limit"][0]()))
    code, _, told = call(server, capsys, "--package", str(path))
    assert code == 0
    assert told.index("mind: retry-limit") < told.index("started nightly")


def test_values_that_break_a_package_are_refused_where_they_are_known(server, capsys, tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump_all(PAIRS["placeholder-json"][1]()))
    given = ["--package", str(path), "--name"]
    parameters = tmp_path / "parameters.json"
    parameters.write_text(json.dumps({"name": 'say "no"'}))
    code, _, told = call(server, capsys, *given, "one", "--parameters", str(parameters), name=None)
    assert (code, "placeholder-json: " in told) == (2, True)


def test_wait_outlasts_lost_answers(server, capsys):
    server.faults = [fault("GET", r"/runs/runs-", BUSY, times=3)]
    code, result, told = call(server, capsys, "--model", "m", "--wait")
    assert (code, result["state"]) == (0, "succeeded")
    assert told.count("looking again") == 3


def test_wait_gives_up_after_its_patience_and_says_that_the_run_goes_on(server, capsys, monkeypatch):
    monkeypatch.setattr(submit, "PATIENCE_S", 0.05)
    server.faults = [fault("GET", r"/runs/runs-", BUSY, times=10**6)]
    code, result, told = call(server, capsys, "--model", "m", "--wait")
    assert (code, result) == (1, None)
    assert "The run goes on" in told
    assert "--name nightly" in told


def test_token_that_expires_while_waiting_is_the_users_to_renew(server, capsys, monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", "good")
    server.token = "good"

    def expire(request, usual):
        if request.method == "GET" and "/runs/runs-" in request.path:
            server.token = "another"

    server.faults = [expire]
    code, _, told = call(server, capsys, "--model", "m", "--wait")
    assert code == 2
    assert "expired" in told
    assert "--token-file" in told
    assert "The run goes on" in told


# Signing in


def test_token_comes_from_the_environment(server, capsys, monkeypatch):
    server.token = "from-the-environment"
    monkeypatch.setenv("KFP_TOKEN", "from-the-environment")
    assert call(server, capsys, "--model", "m")[0] == 0


def test_token_file_is_read_anew(server, capsys, monkeypatch, tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    server.token = "first"

    def renew(request, usual):
        if request.method == "POST" and request.path.endswith("/runs"):
            path.write_text("second")
            answer = usual()
            server.token = "second"
            return answer
        return None

    server.faults = [renew]
    code, result, _ = call(server, capsys, "--model", "m", "--token-file", str(path), "--wait")
    assert (code, result["state"]) == (0, "succeeded")


def test_missing_and_wrong_tokens_are_refused(server, capsys, monkeypatch):
    server.token = "good"
    code, _, told = call(server, capsys, "--model", "m")
    assert (code, "KFP_TOKEN" in told) == (2, True)
    monkeypatch.setenv("KFP_TOKEN", "stale")
    code, _, told = call(server, capsys, "--model", "m")
    assert code == 2
    assert "expired" in told
    assert not server.stores["runs"]


@pytest.mark.parametrize("content", ["", "two words"])
def test_token_file_without_a_token_is_refused(server, capsys, tmp_path, content):
    path = tmp_path / "given"
    path.write_text(content)
    code, _, told = call(server, capsys, "--model", "m", "--token-file", str(path))
    assert (code, "must hold a token" in told) == (2, True)


def test_in_a_pod_the_clusters_service_and_the_pods_token_are_taken(server, capsys, monkeypatch, tmp_path):
    token = tmp_path / "projected"
    token.write_text("of-the-pod")
    server.token = "of-the-pod"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    port = int(server.url.rpartition(":")[2])
    real = urllib3.util.connection.create_connection
    asked = []

    def resolve(address, *arguments, **options):
        asked.append(address)
        return real(("127.0.0.1", port), *arguments, **options)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", resolve)
    code = cli.main([*SUBMIT, "--model", "m", "--json"])
    assert code == 0
    assert ("ml-pipeline.kubeflow.svc.cluster.local", 8888) in asked


def test_without_a_host_the_message_says_how_to_get_one(server, capsys):
    code = cli.main([*SUBMIT, "--model", "m"])
    assert code == 2
    assert "kubectl port-forward" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "ftp://x", "http://"])
def test_host_that_is_no_url_is_refused(server, capsys, host):
    assert cli.main([*SUBMIT, "--model", "m", "--host", host]) == 2
    assert "not a URL" in capsys.readouterr().err


def test_unreachable_host_is_refused_at_once(server, capsys):
    started = time.monotonic()
    code = cli.main([*SUBMIT, "--model", "m", "--host", "http://127.0.0.1:9"])
    assert code == 2
    assert "can't be reached" in capsys.readouterr().err
    assert time.monotonic() - started < 30


def test_login_page_is_named_as_one(server, capsys):
    server.faults = [lambda request, usual: (200, "<html>Please log in</html>")]
    code, _, told = call(server, capsys, "--model", "m")
    assert (code, "login page" in told) == (2, True)


def test_many_users_need_a_namespace(server, capsys):
    server.multi_user = True
    code, _, told = call(server, capsys, "--model", "m")
    assert (code, "--namespace" in told) == (2, True)


def test_forbidden_namespace_names_the_role(server, capsys):
    server.faults = [fault("GET", "/runs$", (403, error(7, "User 'a' is not authorized")))]
    code, _, told = call(server, capsys, "--model", "m", "--namespace", "team")
    assert code == 2
    assert "'team'" in told
    assert "kubeflow-edit" in told


def test_archived_experiment_is_refused(server, capsys):
    call(server, capsys, "--model", "m", name="one")
    next(iter(server.stores["experiments"].values()))["storage_state"] = "ARCHIVED"
    code, _, told = call(server, capsys, "--model", "m", name="two")
    assert (code, "archived" in told) == (2, True)
    assert len(server.stores["runs"]) == 1


# Nothing is started twice


def test_answer_that_comes_too_late_does_not_start_a_second_run(server, capsys, monkeypatch):
    """The server makes the run only after the client gave up waiting and looked for it once in vain."""
    looked, made = threading.Event(), threading.Event()
    real = kubeflow_api.KubeflowApi.call

    def hurried(api, function, **arguments):
        if function.__name__ == "run_service_create_run":
            arguments["answer_s"] = 0.3
        return real(api, function, **arguments)

    def dawdle(request, usual):
        if request.method == "POST" and request.path.endswith("/runs"):
            looked.wait(30)
            answer = usual()
            made.set()
            return answer
        if request.path.endswith("/runs") and server.sent("POST", "/runs$"):
            if looked.is_set():
                made.wait(30)
                return None
            answer = usual()
            looked.set()
            return answer
        return None

    monkeypatch.setattr(kubeflow_api.KubeflowApi, "call", hurried)
    server.faults = [dawdle]
    code, result, told = call(server, capsys, "--model", "m")
    assert code == 0
    assert "no answer" in told
    assert result["id"] == server.named("runs", "nightly")[0]["run_id"]
    assert len(server.named("runs", "nightly")) == len(server.sent("POST", "/runs$")) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_failure_after_the_run_was_taken_finds_it(server, capsys, status):
    server.faults = [fault("POST", "/runs$", (status, error(13, "broken")), after=True)]
    code, result, _ = call(server, capsys, "--model", "m")
    assert code == 0
    assert result["id"] == server.named("runs", "nightly")[0]["run_id"]
    assert len(server.sent("POST", "/runs$")) == 1


def test_failure_that_leaves_the_matter_open_is_not_repeated(server, capsys):
    server.faults = [fault("POST", "/runs$", (500, error(13, "database is down")), times=10**6)]
    code, result, told = call(server, capsys, "--model", "m")
    assert (code, result) == (1, None)
    assert "database is down" in told
    assert "is not known" in told
    assert "same --name" in told
    assert len(server.sent("POST", "/runs$")) == 1


def test_refusal_for_the_moment_is_tried_again(server, capsys):
    server.faults = [fault("POST", "/runs$", (429, error(8, "slow down")), times=2)]
    assert call(server, capsys, "--model", "m")[0] == 0
    assert len(server.named("runs", "nightly")) == 1


def test_conflicts_with_someone_who_was_faster_are_no_errors(server, capsys):
    conflict = (409, error(6, "already exists"))
    server.faults = [
        fault("POST", path, conflict, after=True)
        for path in ("/experiments$", "/pipelines$", "upload_version$")
    ]
    assert call(server, capsys, "--model", "m")[0] == 0
    assert [len(server.stores[name]) for name in ("experiments", "pipelines", "versions", "runs")] == [1] * 4


def test_failed_uploads_are_sent_again(server, capsys):
    server.faults = [fault("POST", "upload_version$", BUSY), fault("GET", "/versions$", BUSY)]
    assert call(server, capsys, "--model", "m")[0] == 0
    assert len(server.stores["versions"]) == 1


def test_what_the_server_refuses_is_the_users_to_correct(server, capsys):
    server.faults = [fault("POST", "/runs$", (400, error(3, "Invalid input error: service account")))]
    code, _, told = call(server, capsys, "--model", "m")
    assert (code, "service account" in told) == (2, True)
    assert len(server.sent("POST", "/runs$")) == 1


# Before anything is sent


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"model": "m", "epoch": 3}, "`epoch`: no such parameter; did you mean epochs?"),
        ({"model": "m", "epochs": "3"}, "epochs: got '3', needs a whole number"),
        ({"model": "m", "align": 1}, "align: got 1, needs true or false"),
        ({"model": "m", "seed": True}, "seed: got True, needs a whole number"),
        ({"epochs": 3}, "model: a value is needed"),
        ([1], "holds list, not an object"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(server, capsys, tmp_path, content, told):
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps(content))
    code, _, said = call(server, capsys, "--parameters", str(path))
    assert (code, told in said) == (2, True)
    assert not server.requests


def test_missing_package_says_how_to_make_one(server, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        call(server, capsys, "--package", str(tmp_path / "none.yaml"))
    assert "calib pipeline compile" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "a: 1\n", "[1, 2]\n", "a: [\n", "\x00"])
def test_file_that_is_no_package_is_refused(server, capsys, tmp_path, content):
    path = tmp_path / "package.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        call(server, capsys, "--package", str(path))
    assert "not a compiled pipeline" in capsys.readouterr().err


def test_flags_of_the_other_platform_are_refused(server, capsys):
    code, _, told = call(server, capsys, "--model", "m", "--project", "p")
    assert (code, "--project is not for kubeflow" in told) == (2, True)


@pytest.mark.parametrize("name", ["Nightly", "1st", "a_b", "a-", "a" * 129, ""])
def test_names_that_a_platform_refuses_are_refused_here(server, capsys, name):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*SUBMIT, "--model", "m", "--name", name])


def test_package_of_others_with_names_that_are_flags_and_with_lists(server, capsys, tmp_path):
    package = write_others_package(tmp_path / "others.yaml")
    parameters = tmp_path / "parameters.json"
    parameters.write_text(json.dumps({"region": "north", "sizes": [1, 2]}))
    code, _, _ = call(
        server, capsys, "--package", str(package), "--parameters", str(parameters), "--count", "5"
    )
    assert code == 0
    (run,) = server.stores["runs"].values()
    assert run["runtime_config"]["parameters"] == {"region": "north", "sizes": [1, 2], "count": 5}

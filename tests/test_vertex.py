"""`calib pipeline submit` and `schedule` on Vertex, against a stand-in for its services on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

pytest.importorskip("google.cloud.aiplatform")

import grpc
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from google.cloud import aiplatform_v1 as v1
from google.cloud.aiplatform_v1.services.pipeline_service.transports import PipelineServiceGrpcTransport
from google.cloud.aiplatform_v1.services.schedule_service.transports import ScheduleServiceGrpcTransport
from small_package import write_kubernetes_package, write_small_package
from vertex_standin import State, VertexServer, fault, service_account_key, serving

import calib_pipelines
from calib_pipelines.clusters import base as clusters
from calib_pipelines.clusters import vertex as clusters_vertex
from calib_pipelines.commands import main as cli
from calib_pipelines.commands import submit

PLACE = ["--target", "vertex", "--project", "my-project", "--region", "europe-west4"]
RUNS_AS = "calib@my-project.iam.gserviceaccount.com"
WHAT = ["--pipeline-root", "gs://bucket/calib", "--service-account", RUNS_AS]
PARENT = "projects/my-project/locations/europe-west4"
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def private_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return write_small_package(tmp_path_factory.mktemp("package") / "small.yaml")


@pytest.fixture(autouse=True)
def _small_package(monkeypatch, package):
    monkeypatch.setitem(globals(), "WHAT", [*WHAT, "--package", str(package)])


@pytest.fixture
def server(monkeypatch, tmp_path, private_key):
    """A stand-in that the library's own clients reach without TLS; waits are short."""
    with serving(VertexServer()) as made:
        hosts = []

        def create_channel(host, **options):
            hosts.append(host)
            return grpc.insecure_channel(made.address)

        for transport in (PipelineServiceGrpcTransport, ScheduleServiceGrpcTransport):
            monkeypatch.setattr(transport, "create_channel", create_channel)
        key = tmp_path / "key.json"
        key.write_text(json.dumps(service_account_key(made, private_key)))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", made.http)
        monkeypatch.setattr(clusters, "RETRY_PAUSES_S", (0.01, 0.01))
        monkeypatch.setattr(clusters, "LOOKUP_PAUSES_S", (0.01, 0.01))
        monkeypatch.setattr(submit, "POLL_S", 0.01)
        yield made
        assert {host.removesuffix(":443") for host in hosts} <= {"europe-west4-aiplatform.googleapis.com"}


def call(capsys, *arguments):
    """Exit code, the JSON object that was printed or None, and standard error."""
    capsys.readouterr()
    code = cli.main(["pipeline", *arguments, "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else None, printed.err


def start(capsys, *arguments, model="gs://models/m", name="nightly"):
    return call(capsys, "submit", *PLACE, *WHAT, "--name", name, "--model", model, *arguments)


def create(capsys, cron="30 3 * * 1", model="m", name="weekly"):
    return call(capsys, "schedule", "create", *PLACE, *WHAT, "--name", name, "--cron", cron, "--model", model)


def act(capsys, action, name="weekly"):
    return call(capsys, "schedule", action, *PLACE, "--name", name)


def test_job_is_started_with_what_was_given(server, capsys):
    code, result, told = start(capsys, "--epochs", "3", "--no-align", "--target-ece", "0.1")
    assert code == 0
    (job,) = server.jobs.values()
    assert job.name == result["id"] == f"{PARENT}/pipelineJobs/nightly"
    assert dict(job.runtime_config.parameter_values) == {
        "model": "gs://models/m",
        "epochs": 3,
        "align": False,
        "target_ece": 0.1,
    }
    assert job.runtime_config.gcs_output_directory == "gs://bucket/calib"
    assert job.service_account == RUNS_AS
    assert job.pipeline_spec["pipelineInfo"]["name"] == "small"
    assert result["link"] == (
        "https://console.cloud.google.com/vertex-ai/locations/europe-west4/pipelines/runs/nightly"
        "?project=my-project"
    )
    assert result["link"] in told


def test_same_name_finds_the_job(server, capsys):
    start(capsys)
    code, result, _ = start(capsys)
    assert (code, result["started"]) == (0, False)
    code, _, told = start(capsys, model="other")
    assert (code, "choose another --name" in told) == (2, True)
    assert len(server.jobs) == len(server.made("CreatePipelineJob")) == 1


@pytest.mark.parametrize(
    ("last", "state", "code"),
    [
        (State.PIPELINE_STATE_SUCCEEDED, "succeeded", 0),
        (State.PIPELINE_STATE_FAILED, "failed", 1),
        (State.PIPELINE_STATE_CANCELLED, "cancelled", 1),
    ],
)
def test_wait_says_each_change_and_ends_with_the_job(server, capsys, last, state, code):
    server.plan = [State.PIPELINE_STATE_QUEUED, State.PIPELINE_STATE_RUNNING, last]
    server.tasks = {"evaluate": v1.PipelineTaskDetail.State.SUCCEEDED, "nightly": 2}
    server.faults = [fault("GetPipelineJob", Code.UNAVAILABLE, "try later", times=2)]
    ended, result, told = start(capsys, "--wait")
    assert (ended, result["state"]) == (code, state)
    assert result["tasks"] == {"evaluate": "succeeded"}
    assert result["error"] == ("task evaluate failed" if state == "failed" else "")
    states = [line for line in told.splitlines() if line.startswith("[nightly]")]
    assert states[-2:] == ["[nightly] running", f"[nightly] {state}"]


@pytest.mark.parametrize(
    "code", [Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.INTERNAL, Code.RESOURCE_EXHAUSTED]
)
@pytest.mark.parametrize("after", [False, True])
def test_lost_answers_start_one_job(server, capsys, code, after):
    server.faults = [fault("CreatePipelineJob", code, "trouble", times=2, after=after)]
    if after:
        server.faults = [fault("CreatePipelineJob", code, "trouble", after=True)]
    assert start(capsys)[0] == 0
    assert len(server.jobs) == 1


def test_answer_that_comes_too_late_starts_one_job(server, capsys, monkeypatch):
    monkeypatch.setattr(clusters_vertex, "ANSWER_S", 1.0)
    slow = []

    def dawdle(method, request, usual):
        if method == "CreatePipelineJob" and not slow:
            slow.append(method)
            time.sleep(1.3)

    server.faults = [dawdle]
    assert start(capsys)[0] == 0
    assert len(server.jobs) == 1


def test_service_that_stays_away_is_reported_as_such(server, capsys):
    server.faults = [fault("CreatePipelineJob", Code.INTERNAL, "backend broken", times=100)]
    code, _, told = start(capsys)
    assert code == 1
    assert "backend broken" in told
    assert "was not created" in told
    assert not server.jobs


# What the user can put right


@pytest.mark.parametrize(
    ("code", "text", "advice"),
    [
        (
            Code.PERMISSION_DENIED,
            "Permission 'aiplatform.pipelineJobs.create' denied",
            "roles/aiplatform.user",
        ),
        (Code.UNAUTHENTICATED, "Request had invalid credentials", "gcloud auth application-default login"),
        (Code.INVALID_ARGUMENT, "machine type is not supported", "machine type is not supported"),
        (Code.FAILED_PRECONDITION, "service agent is missing", "service agent is missing"),
        (Code.UNAVAILABLE, "failed to connect to all addresses", "check the region"),
    ],
)
def test_refusals_say_what_to_do(server, capsys, code, text, advice):
    server.faults = [fault("CreatePipelineJob", code, text)]
    ended, _, told = start(capsys)
    assert (ended, advice in told) == (2, True)
    assert len(server.made("CreatePipelineJob")) == 1


def test_missing_bucket_is_refused_with_the_command_that_makes_it(server, capsys):
    del server.buckets["bucket"]
    for code, _, told in (start(capsys), create(capsys)):
        assert code == 2
        assert "gcloud storage buckets create gs://bucket" in told
    assert not server.jobs
    assert not server.schedules


def test_bucket_that_may_not_be_looked_at_is_taken_on_trust(server, capsys):
    server.buckets["bucket"] = 403
    assert start(capsys)[0] == 0


def test_expired_credentials_are_named(server, capsys):
    server.token_status = 400
    code, _, told = start(capsys)
    assert (code, "gcloud auth application-default login" in told) == (2, True)
    assert not server.jobs


def test_missing_credentials_are_named(server, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    code, _, told = start(capsys)
    assert (code, "GOOGLE_APPLICATION_CREDENTIALS" in told) == (2, True)


def test_unknown_region_is_refused(server, capsys):
    code, _, told = start(capsys, "--region", "europe-west99")
    assert (code, "europe-west99" in told, "locations" in told) == (2, True, True)
    assert not server.calls


def test_place_and_account_must_be_given(capsys):
    given = ["submit", "--target", "vertex", "--model", "m"]
    code, _, told = call(capsys, *given)
    assert (code, "--pipeline-root" in told, "--service-account" in told) == (2, True, True)
    code, _, told = call(capsys, *given, *WHAT)
    assert (code, "--project is missing; --region is missing" in told) == (2, True)
    code, _, told = call(capsys, *given, *WHAT, *PLACE, "--namespace", "team")
    assert (code, "--namespace is not for vertex" in told) == (2, True)


@pytest.mark.parametrize("root", ["bucket/x", "gs://", "/gcs/bucket", "gs://B/x"])
def test_pipeline_roots_that_are_no_buckets_are_refused(capsys, root):
    code, _, told = call(capsys, "submit", *PLACE, *WHAT, "--model", "m", "--pipeline-root", root)
    assert (code, "gs://my-bucket" in told) == (2, True)


def test_package_with_kubernetes_settings_is_refused(capsys, tmp_path):
    pytest.importorskip("kfp.kubernetes")
    path = write_kubernetes_package(tmp_path / "kubernetes.yaml")
    code, _, told = call(capsys, "submit", *PLACE, *WHAT, "--package", str(path))
    assert (code, "kubernetes-settings: " in told, "--target vertex" in told) == (2, True, True)


def test_missing_library_says_what_to_install(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("calib_pipelines.clusters.vertex")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(calib_pipelines.clusters, "vertex")
    monkeypatch.delattr("google.cloud.aiplatform")
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform", None)
    code, _, told = call(capsys, "schedule", "list", *PLACE)
    assert (code, "pip install 'calib-core[vertex]'" in told) == (2, True)


# Schedules


def test_schedule_is_made_changed_and_never_doubled(server, capsys):
    code, result, _ = create(capsys)
    assert (code, result["change"], result["state"]) == (0, "created", "active")
    (made,) = server.schedules.values()
    assert made.cron == "30 3 * * 1"
    assert made.max_concurrent_run_count == 1
    assert made.create_pipeline_job_request.parent == PARENT
    job = made.create_pipeline_job_request.pipeline_job
    assert job.service_account == RUNS_AS
    assert job.runtime_config.parameter_values["model"] == "m"

    assert create(capsys)[1]["change"] == "unchanged"
    assert not server.made("UpdateSchedule")

    code, result, _ = create(capsys, "TZ=Europe/Berlin 0 6 * * *", model="other")
    assert (code, result["change"]) == (0, "updated")
    (changed,) = server.schedules.values()
    assert changed.name == result["id"] == made.name
    assert changed.cron == "TZ=Europe/Berlin 0 6 * * *"
    job = changed.create_pipeline_job_request.pipeline_job
    assert job.runtime_config.parameter_values["model"] == "other"
    assert create(capsys, "TZ=Europe/Berlin 0 6 * * *", model="other")[1]["change"] == "unchanged"


def test_a_change_leaves_alone_what_others_set(server, capsys):
    create(capsys)
    (made,) = server.schedules.values()
    made.max_run_count = 12
    made.allow_queueing = True
    assert create(capsys, "0 6 * * *")[1]["change"] == "updated"
    (changed,) = server.schedules.values()
    assert (changed.cron, changed.max_run_count, changed.allow_queueing) == ("0 6 * * *", 12, True)


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda spec: spec.update(schemaVersion="2.0.0"), "schemaVersion"),
        (lambda spec: spec["root"].update(futureField=1), "futureField"),
        (lambda spec: spec["components"].clear(), "has no component"),
        (lambda spec: spec["deploymentSpec"]["executors"].clear(), "no executor that can be run"),
    ],
)
def test_pipelines_that_the_service_refuses_are_the_users_to_correct(
    server, capsys, monkeypatch, package, tmp_path, break_it, told
):
    class Built:
        pipeline_spec = yaml.safe_load(package.read_text())
        runtime_config = v1.PipelineJob.RuntimeConfig(
            gcs_output_directory="gs://bucket/calib", parameter_values={"model": "m"}
        )

    break_it(Built.pipeline_spec)
    monkeypatch.setattr(clusters_vertex.aiplatform, "PipelineJob", lambda **given: Built)
    code, _, said = start(capsys)
    assert (code, told in said) == (2, True)
    assert not server.jobs


def test_schedule_whose_answer_was_lost_is_not_doubled(server, capsys):
    server.faults = [fault("CreateSchedule", Code.DEADLINE_EXCEEDED, "too slow", after=True)]
    assert create(capsys)[1]["state"] == "active"
    assert len(server.schedules) == len(server.made("CreateSchedule")) == 1


def test_schedule_that_may_have_been_made_is_not_made_again(server, capsys):
    server.faults = [fault("CreateSchedule", Code.INTERNAL, "broken", times=100)]
    code, _, told = create(capsys)
    assert (code, "is not known" in told) == (1, True)
    assert len(server.made("CreateSchedule")) == 1


def test_update_is_sent_again_where_its_answer_was_lost(server, capsys):
    create(capsys)
    server.faults = [fault("UpdateSchedule", Code.UNAVAILABLE, "try later", after=True)]
    assert create(capsys, "0 6 * * *")[1]["change"] == "updated"
    assert [one.cron for one in server.schedules.values()] == ["0 6 * * *"]


def test_pause_resume_and_change_while_paused(server, capsys):
    create(capsys)
    for action, change, state in (
        ("pause", "paused", "paused"),
        ("pause", "unchanged", "paused"),
        ("resume", "resumed", "active"),
        ("resume", "unchanged", "active"),
        ("pause", "paused", "paused"),
    ):
        code, result, _ = act(capsys, action)
        assert (code, result["change"], result["state"]) == (0, change, state)
    assert create(capsys, "0 6 * * *")[1]["state"] == "paused"


def test_delete_and_list(server, capsys):
    for name in ("one", "two", "three"):
        create(capsys, name=name)
    assert act(capsys, "delete", "two")[1]["change"] == "deleted"
    code, result, _ = call(capsys, "schedule", "list", *PLACE)
    assert [one["name"] for one in result["schedules"]] == ["one", "three"]
    code, _, told = act(capsys, "delete", "two")
    assert (code, "no schedule named 'two'" in told) == (2, True)


def test_several_of_one_name_are_not_guessed_between(server, capsys):
    create(capsys)
    (made,) = server.schedules.values()
    twin = type(made)(made)
    twin.name = f"{PARENT}/schedules/9999"
    server.schedules[twin.name] = twin
    for code, _, told in (create(capsys, "0 6 * * *"), act(capsys, "pause"), act(capsys, "delete")):
        assert (code, "9999" in told) == (2, True)
    assert len(server.schedules) == 2


def test_schedules_made_by_other_means_are_left_alone(server, capsys):
    create(capsys)
    (made,) = server.schedules.values()
    made.create_pipeline_job_request.pipeline_job.labels.clear()
    code, _, told = create(capsys, "0 6 * * *")
    assert (code, "not made by this command" in told) == (2, True)


@pytest.mark.slow
def test_whole_command_through_tls_and_a_proxy(tmp_path, private_key):
    """Nothing is patched: the project's package, credentials, TLS, the region's name, the user's proxy."""
    from google.auth import jwt
    from loopback import certificate, connect_proxy

    host = "europe-west4-aiplatform.googleapis.com"
    pem_key, pem_certificate = certificate(host, private_key)
    roots = tmp_path / "roots.pem"
    roots.write_bytes(pem_certificate)
    server = VertexServer()
    server.plan = [State.PIPELINE_STATE_SUCCEEDED]
    options = ["--name", "nightly", "--model", "m", "--wait", "--json"]
    credentials = grpc.ssl_server_credentials([(pem_key, pem_certificate)])
    with serving(server, credentials), connect_proxy({f"{host}:443": server.address}) as proxy:
        key = tmp_path / "key.json"
        key.write_text(json.dumps(service_account_key(server, private_key)))
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": ":".join(path for path in sys.path if path),
            "GOOGLE_APPLICATION_CREDENTIALS": str(key),
            "STORAGE_EMULATOR_HOST": server.http,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(roots),
            "https_proxy": proxy,
            "no_proxy": "127.0.0.1",
        }
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "calib_pipelines.commands.main",
                "pipeline",
                "submit",
                *PLACE,
                *WHAT,
                *options,
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert list(server.jobs) == [f"{PARENT}/pipelineJobs/nightly"]
    scheme, token = server.metadata["authorization"].split()
    assert scheme == "Bearer"
    assert token == "t" or jwt.decode(token, verify=False)["iss"].startswith("me@my-project")

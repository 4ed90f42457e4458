"""`calib pipeline schedule` on Kubeflow, against a stand-in for KFP's API server on loopback."""

from __future__ import annotations

import json

import pytest
import yaml
from kfp_standin import KfpServer, error, fault, serving
from rule_packages import PAIRS
from small_package import write_small_package

from calib_pipelines.clusters import base as clusters
from calib_pipelines.commands import main as cli

BROKEN = (500, error(13, "broken"))
MONDAYS, DAILY = "30 3 * * 1", "0 6 * * *"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return write_small_package(tmp_path_factory.mktemp("package") / "small.yaml")


PACKAGE: list[str] = []


@pytest.fixture
def server(monkeypatch, tmp_path, package):
    for name in ("KFP_TOKEN", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(clusters, "RETRY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(clusters, "LOOKUP_PAUSES_S", (0.01, 0.01))
    monkeypatch.setitem(globals(), "PACKAGE", ["--package", str(package)])
    with serving(KfpServer()) as made:
        yield made


def schedule(server, capsys, action, *arguments):
    """Exit code, the JSON object that was printed or None, and standard error."""
    capsys.readouterr()
    code = cli.main(
        ["pipeline", "schedule", action, "--target", "kubeflow", "--host", server.url, "--json", *arguments]
    )
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else None, printed.err


def create(server, capsys, cron=MONDAYS, *arguments, model="m", name="weekly"):
    given = [*PACKAGE, "--name", name, "--cron", cron, "--model", model, *arguments]
    return schedule(server, capsys, "create", *given)


def schedules(server):
    """Cron and status of all recurring runs named."""
    return sorted(
        (one["trigger"]["cron_schedule"]["cron"], one["status"])
        for one in server.named("recurringruns", "weekly")
    )


def statuses_over_time(server):
    """How many recurring runs were enabled after each request, from now on."""
    seen = []

    def watch(request, usual):
        answer = usual()
        seen.append(sum(one["status"] == "ENABLED" for one in server.stores["recurringruns"].values()))
        return answer

    server.faults.append(watch)
    return seen


def test_schedule_is_made_in_six_fields(server, capsys):
    code, result, _ = create(server, capsys)
    assert code == 0
    (made,) = server.named("recurringruns", "weekly")
    assert made["trigger"]["cron_schedule"]["cron"] == "0 30 3 * * 1"
    assert made["runtime_config"]["parameters"] == {"model": "m"}
    assert (made["mode"], made["no_catchup"], made["max_concurrency"]) == ("ENABLE", True, "1")
    assert result == {
        "target": "kubeflow",
        "name": "weekly",
        "id": made["recurring_run_id"],
        "state": "active",
        "cron": "0 30 3 * * 1",
        "link": f"{server.url}/#/recurringrun/details/{made['recurring_run_id']}",
        "change": "created",
        "parameters": {"model": "m"},
    }


def test_same_again_changes_nothing(server, capsys):
    create(server, capsys)
    sent = len(server.sent("POST", ""))
    code, result, _ = create(server, capsys)
    assert (code, result["change"]) == (0, "unchanged")
    assert len(server.sent("POST", "")) == sent
    assert len(server.named("recurringruns", "weekly")) == 1


@pytest.mark.parametrize("what", [{"cron": DAILY}, {"model": "other"}])
def test_change_replaces_it_and_never_lets_two_run(server, capsys, what):
    create(server, capsys)
    old = server.named("recurringruns", "weekly")[0]["recurring_run_id"]
    enabled = statuses_over_time(server)
    code, result, _ = create(server, capsys, **what)
    assert (code, result["change"], result["state"]) == (0, "updated", "active")
    (new,) = server.named("recurringruns", "weekly")
    assert new["recurring_run_id"] == result["id"] != old
    assert new["status"] == "ENABLED"
    assert max(enabled) == 1


def test_package_that_the_backend_cannot_run_is_not_scheduled(server, capsys, tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump_all(PAIRS["importer-name"][0]()))
    given = ["--package", str(path), "--name", "weekly", "--cron", MONDAYS, "--uri", "gs://bucket/model"]
    code, _, told = schedule(server, capsys, "create", *given)
    assert (code, "importer-name: " in told) == (2, True)
    server.tag_name = "2.5.0"
    code, _, told = create(server, capsys)
    assert (code, "2.14 or newer is needed" in told) == (2, True)
    assert not server.stores["recurringruns"]


def test_paused_schedule_stays_paused_when_it_is_changed(server, capsys):
    create(server, capsys)
    assert schedule(server, capsys, "pause", "--name", "weekly")[1]["change"] == "paused"
    enabled = statuses_over_time(server)
    assert create(server, capsys, DAILY)[1]["state"] == "paused"
    assert schedules(server) == [("0 0 6 * * *", "DISABLED")]
    assert max(enabled) == 0


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/recurringruns$"),
        ("POST", ":disable$"),
        ("POST", ":enable$"),
        ("DELETE", "/recurringruns/"),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_replacement_that_was_cut_short_is_finished_by_the_same_command(
    server, capsys, method, path, after, paused
):
    create(server, capsys)
    if paused:
        schedule(server, capsys, "pause", "--name", "weekly")
    enabled = statuses_over_time(server)
    cut = fault(method, path, BROKEN, times=1 if after else 10**6, after=after)

    def die(request, usual):
        """Fail at the request, or let it take effect and answer nothing from then on."""
        answer = cut(request, usual)
        if answer is not None and after:
            server.faults.insert(0, lambda request, usual: BROKEN)
        return answer

    server.faults.insert(0, die)
    create(server, capsys, DAILY)
    server.faults = [server.faults[-1]]
    code, result, _ = create(server, capsys, DAILY)
    state = ("paused", "DISABLED") if paused else ("active", "ENABLED")
    assert (code, result["state"]) == (0, state[0])
    assert schedules(server) == [("0 0 6 * * *", state[1])]
    assert max(enabled) <= 1


def test_replacement_that_was_cut_short_can_be_taken_back(server, capsys):
    create(server, capsys)
    server.faults = [fault("POST", ":disable$", BROKEN, times=10**6)]
    assert create(server, capsys, DAILY)[0] == 1
    server.faults = []
    assert len(schedules(server)) == 2
    assert create(server, capsys, MONDAYS)[1]["state"] == "active"
    assert schedules(server) == [("0 30 3 * * 1", "ENABLED")]


def test_schedule_whose_answer_was_lost_is_not_doubled(server, capsys):
    server.faults = [fault("POST", "/recurringruns$", (504, "gateway"), after=True)]
    assert create(server, capsys)[0] == 0
    assert schedules(server) == [("0 30 3 * * 1", "ENABLED")]


def test_pause_and_resume(server, capsys):
    create(server, capsys)
    for action, change, state in (
        ("pause", "paused", "paused"),
        ("pause", "unchanged", "paused"),
        ("resume", "resumed", "active"),
        ("resume", "unchanged", "active"),
    ):
        code, result, _ = schedule(server, capsys, action, "--name", "weekly")
        assert (code, result["change"], result["state"]) == (0, change, state)


def test_delete_and_what_is_gone(server, capsys):
    create(server, capsys)
    create(server, capsys, name="other")
    assert schedule(server, capsys, "delete", "--name", "weekly")[1]["change"] == "deleted"
    assert [one["display_name"] for one in server.stores["recurringruns"].values()] == ["other"]
    code, _, told = schedule(server, capsys, "delete", "--name", "weekly")
    assert (code, "schedule list" in told) == (2, True)


def test_list_reads_all_pages(server, capsys):
    for name in ("one", "two", "three"):
        create(server, capsys, name=name)
    code, result, _ = schedule(server, capsys, "list")
    assert code == 0
    assert [one["name"] for one in result["schedules"]] == ["one", "two", "three"]


def test_schedules_made_by_other_means_are_left_alone(server, capsys):
    create(server, capsys)
    server.named("recurringruns", "weekly")[0]["description"] = "made in the dashboard"
    code, _, told = create(server, capsys, DAILY)
    assert (code, "not made by this command" in told) == (2, True)
    assert schedules(server) == [("0 30 3 * * 1", "ENABLED")]


def test_namespace_keeps_schedules_apart(server, capsys):
    server.multi_user = True
    create(server, capsys, MONDAYS, "--namespace", "one")
    create(server, capsys, DAILY, "--namespace", "two")
    assert schedules(server) == [("0 0 6 * * *", "ENABLED"), ("0 30 3 * * 1", "ENABLED")]


@pytest.mark.parametrize("cron", ["61 * * * *", "TZ=Europe/Berlin 0 6 * * *"])
def test_cron_that_can_not_be_is_refused_before_anything_is_sent(server, capsys, cron):
    code, _, told = create(server, capsys, cron)
    assert code == 2
    assert "Monday at 03:30" in told or "one time zone" in told
    assert not server.requests


def test_text_says_what_was_done_in_one_line(server, capsys):
    create(server, capsys)
    capsys.readouterr()
    cli.main(["pipeline", "schedule", "list", "--target", "kubeflow", "--host", server.url])
    assert capsys.readouterr().out.startswith("weekly (0 30 3 * * 1), active, http://127.0.0.1:")

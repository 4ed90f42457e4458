"""Small packages, run as Kubeflow's backend runs them: what breaks a rule fails, its neighbour doesn't."""

# KFP reads annotations as they stand: no `from __future__ import annotations` here.

import pytest
from kfp import dsl
from kfp.dsl import PipelineTaskFinalStatus
from rule_packages import PAIRS, documents, make
from strict_backend import FAILURE, LOST, Backend, PodLostError, TaskFailedError

OLD, NEW = (2, 16), (2, 17)
URI = {"uri": "gs://bucket/model"}


def longer(call):
    return {"Output": call.parameters["text"] + "."}


def backend(**options):
    programs = {
        "make": longer,
        "load": lambda call: {"Output": call.uri("model")},
        "numbers": lambda call: {"Output": [1, 2]},
        "gather": lambda call: {
            "Output": str(len(call.executor_input["inputs"]["artifacts"]["parts"]["artifacts"]))
        },
        **{name: lambda call: None for name in ("write", "read", "say", "strict", "use", "step")},
    }
    return Backend({**programs, **options.pop("programs", {})}, **options)


# The three ways in which packages failed that KFP's local runner takes


@pytest.mark.parametrize("version", [OLD, NEW])
def test_an_importer_of_another_tasks_output_fails(version):
    breaks, keeps = PAIRS["importer-input"]
    result = backend(version=version).run(breaks(), URI)
    assert result.phase == "Failed"
    assert result.errors == {
        "importer": "error resolving artifact URI: parent DAG does not have input parameter "
    }
    assert backend(version=version).run(keeps(), URI).outputs("load") == {"Output": "gs://bucket/model."}


@pytest.mark.parametrize("version", [OLD, NEW])
def test_an_importer_with_a_display_name_is_not_found(version):
    breaks, keeps = PAIRS["importer-name"]
    result = backend(version=version).run(breaks(), URI)
    assert result.phase == "Failed"
    assert result.phases == {"importer": "Succeeded", "load": "Failed"}
    assert result.errors["load"].startswith('cannot find producer task "importer_')
    assert backend(version=version).run(keeps(), URI).outputs("load") == {"Output": "gs://bucket/model"}


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_merge_after_a_branch_from_the_cache_fails(version):
    breaks, keeps = PAIRS["branch-cached"]
    here = backend(version=version)
    assert here.run(breaks(), {"text": "a"}).phase == "Succeeded"
    second = here.run(breaks(), {"text": "a"})
    assert second.phase == "Failed"
    assert second.ran == []
    assert second.errors == {"make-4": "processing OneOf: No successful task found"}
    assert second.states["condition-branches-1/condition-2"] == "RUNNING"
    here = backend(version=version)
    for text, branch in (("a", "first..."), ("a", "first..."), ("b", "other.."), ("a", "first...")):
        result = here.run(keeps(), {"text": text})
        assert result.phase == "Succeeded", result.errors
        assert result.outputs("make-4") == {"Output": branch}
    assert result.ran == ["make-2"]  # all else came from the cache


# Every rule that shows when a package runs

FAILS = {
    "importer-input": (NEW, URI),
    "importer-name": (NEW, URI),
    "importer-twin": (NEW, URI),
    "importer-scheme": (NEW, {}),
    "branch-cached": (NEW, {"text": "a"}),
    "branch-loop": (OLD, {"text": "a"}),
    "merged-artifact": (OLD, {"text": "a"}),
    "doubled-artifact": (NEW, {}),
    "loop-name": ((2, 15), {}),
    "placeholder-json": (NEW, {"name": 'say "no"'}),
    "placeholder-absent": (NEW, {}),
    "input-null": (NEW, {}),
}


@pytest.mark.parametrize("rule", FAILS)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_breaks_a_rule_fails_by_its_second_run(rule, seed):
    version, parameters = FAILS[rule]
    here = backend(version=version, seed=seed)
    made = PAIRS[rule][0]()
    assert "Failed" in [here.run(made, parameters).phase for _ in range(2)]


@pytest.mark.parametrize("rule", sorted(FAILS.keys() - {"placeholder-json"}))
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("version", [OLD, NEW])
def test_what_keeps_it_succeeds_twice(rule, seed, version):
    here = backend(version=version, seed=seed)
    made = PAIRS[rule][1]()
    for _ in range(2):
        result = here.run(made, FAILS[rule][1])
        assert result.phase == "Succeeded", result.errors


@pytest.mark.parametrize("rule", ["branch-loop", "merged-artifact", "loop-name", "placeholder-absent"])
def test_what_one_release_refuses_runs_on_another(rule):
    version, parameters = FAILS[rule]
    other = NEW if version < NEW else OLD
    here = backend(version=other)
    made = PAIRS[rule][0]()
    assert [here.run(made, parameters).phase for _ in range(2)] == ["Succeeded", "Succeeded"]


def test_of_a_list_of_artifacts_an_inner_pipeline_sees_one():
    breaks, keeps = PAIRS["artifact-list"]
    assert backend().run(breaks()).outputs("gather") == {"Output": "1"}
    assert backend().run(keeps()).outputs("gather") == {"Output": "2"}


def test_an_importer_does_not_wait():
    breaks, keeps = PAIRS["importer-waits"]
    assert next(iter(backend().run(breaks(), URI).phases)) == "importer"
    assert backend().run(keeps(), URI).ran == ["make", "load"]


def test_placeholders_of_the_run_are_filled_in_alone_and_not_within_more():
    breaks, keeps = PAIRS["placeholder-embedded"]
    assert backend().run(breaks()).outputs("make") == {"Output": "run-{{$.pipeline_job_name}}."}
    assert backend().run(keeps()).outputs("make") == {"Output": "p 1."}


# Retries, exit tasks, loops


def failing(times, *, seconds=1.0, error=TaskFailedError):
    """A program that fails some times and then succeeds."""

    def program(call):
        call.took_s = seconds
        if call.attempt <= times:
            raise error("not yet")
        return {"Output": ""}

    return program


@pytest.mark.parametrize(
    ("limit", "seconds", "attempts", "phase"),
    [
        ("600s", 700.0, 1, "Failed"),  # the time is over before the first retry
        ("600s", 400.0, 2, "Failed"),  # the first retry is killed at 600 s
        ("600s", 100.0, 3, "Succeeded"),
        ("2592000s", 90_000.0, 3, "Succeeded"),
    ],
)
def test_attempts_share_the_time_from_the_first_ones_start(limit, seconds, attempts, phase):
    made = PAIRS["retry-time"][1]()
    made[0]["root"]["dag"]["tasks"]["make"]["retryPolicy"]["backoffMaxDuration"] = limit
    here = backend(version=OLD, programs={"make": failing(2, seconds=seconds)})
    result = here.run(made)
    assert (len(result.calls), result.phase) == (attempts, phase)


@pytest.mark.parametrize(
    ("version", "error", "attempts"),
    [(OLD, TaskFailedError, 3), (OLD, PodLostError, 1), (NEW, TaskFailedError, 1), (NEW, PodLostError, 3)],
)
def test_releases_retry_different_failures(version, error, attempts):
    made = PAIRS["retry-time"][1]()
    result = backend(version=version, programs={"make": failing(2, error=error)}).run(made)
    assert len(result.calls) == attempts
    assert result.phase == ("Succeeded" if attempts == 3 else "Failed")


@dsl.component(base_image="python:3.11")
def record(status: PipelineTaskFinalStatus):
    pass


@dsl.pipeline(name="ended")
def ended(text: str):
    end = record()
    end.set_caching_options(False)
    with dsl.ExitHandler(end):
        first = make(text=text)
        make(text=first.output)


def final_state(here, text="a"):
    result = here.run(documents(ended), {"text": text})
    (call,) = [call for call in result.calls if call.task == "record"]
    status = call.parameters["status"]
    assert status["pipelineTaskName"] == "exit-handler-1"
    assert status["error"] == {}
    return result.phase, status["state"]


@pytest.mark.parametrize("version", [OLD, NEW])
def test_an_exit_task_sees_the_metadata_stores_state(version):
    here = backend(version=version, programs={"record": lambda call: None})
    assert final_state(here) == ("Succeeded", "COMPLETE")
    assert final_state(here) == ("Succeeded", "RUNNING")  # all of it from the cache
    here.programs["make"] = failing(9)
    assert final_state(here, "b") == ("Failed", "FAILED")
    here.programs["make"] = failing(9, error=PodLostError)
    assert final_state(here, "c") == ("Failed", "RUNNING")


def test_a_retried_task_leaves_its_dag_complete():
    made = documents(ended)
    for component in made[0]["components"].values():
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["retryPolicy"] = {"maxRetryCount": 2, "backoffMaxDuration": "9999s"}
    here = backend(programs={"record": lambda call: None, "make": failing(1)}, retried=(FAILURE, LOST))
    result = here.run(made, {"text": "a"})
    assert result.phase == "Succeeded"
    assert result.states["exit-handler-1"] == "COMPLETE"
    assert result.ran == ["make", "make", "make-2", "make-2", "record"]


def test_equal_tasks_of_one_run_share_the_cache():
    @dsl.pipeline(name="equal")
    def equal():
        first = make(text="a")
        make(text="a").after(first)

    result = backend().run(documents(equal))
    assert result.ran == ["make"]
    assert result.states == {"make": "COMPLETE", "make-2": "CACHED"}


def test_loops_collect_what_their_turns_made():
    @dsl.component(base_image="python:3.11")
    def join(texts: list) -> str:
        return ""

    @dsl.pipeline(name="looped")
    def looped(texts: list):
        with dsl.ParallelFor(texts) as text:
            inner = make(text=make(text=text).output)
        join(texts=dsl.Collected(inner.output))

    here = backend(programs={"join": lambda call: {"Output": "+".join(call.parameters["texts"])}})
    result = here.run(documents(looped), {"texts": ["a", "b", "c"]})
    assert result.outputs("join") == {"Output": "a..+b..+c.."}

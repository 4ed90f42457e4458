"""The shape that Kubeflow's backend needs of pipelines: how branches end, how values and models travel."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kfp import compiler

from calib_pipelines.compile import DEFINITIONS, PIPELINES
from calib_pipelines.definitions.platforms import ClusterPlatform, Platform, Settings, build
from calib_pipelines.definitions.run_record import recorder_of

Spec = dict[str, Any]
PLACES = {"nowhere": Platform(), "cluster": ClusterPlatform(Settings(run_records="gs://bucket/runs"))}


@pytest.fixture(
    scope="module", params=[(name, place) for name in DEFINITIONS for place in PLACES], ids="-".join
)
def spec(request, tmp_path_factory) -> Spec:
    """A compiled pipeline, on no platform in particular or under an exit handler."""
    name, place = request.param
    path = tmp_path_factory.mktemp(name) / "package.yaml"
    compiler.Compiler().compile(build(DEFINITIONS[name], PLACES[place], name=name), str(path))
    found: Spec = yaml.safe_load(path.read_text())
    return found


def dags(spec: Spec) -> Iterator[Spec]:
    """All DAGs of a pipeline, the root first."""
    yield spec["root"]["dag"]
    yield from (component["dag"] for component in spec["components"].values() if "dag" in component)


def component_of(spec: Spec, task: Spec) -> Spec:
    found: Spec = spec["components"][task["componentRef"]["name"]]
    return found


def reached(tasks: dict[str, Spec], name: str) -> set[str]:
    """A task and all that it waits for."""
    before = {other for one in tasks[name].get("dependentTasks", ()) for other in reached(tasks, one)}
    return {name, *before}


def ends_by_running(spec: Spec, dag: Spec) -> bool:
    """Whether a task that really runs, whatever the cache holds, comes last in a DAG."""
    tasks = dag["tasks"]
    return any(
        "executorLabel" in component_of(spec, task)
        and not task["cachingOptions"].get("enableCache")
        and reached(tasks, name) == set(tasks)
        for name, task in tasks.items()
    )


def branches(spec: Spec) -> dict[str, Spec]:
    """DAGs of the branches that a merged value is taken from."""
    return {
        selector["producerSubtask"]: component_of(spec, dag["tasks"][selector["producerSubtask"]])["dag"]
        for dag in dags(spec)
        for output in dag.get("outputs", {}).get("parameters", {}).values()
        for selector in output.get("valueFromOneof", {}).get("parameterSelectors", ())
    }


def test_every_branch_ends_with_a_task_that_is_never_cached(spec):
    """The backend merges from a branch in state COMPLETE, which only a task that ran brings about."""
    found = branches(spec)
    assert (
        len(found)
        == {"restore-calibration": 7, "recalibrate": 5, "score-large": 0}[spec["pipelineInfo"]["name"]]
    )
    assert all(ends_by_running(spec, branch) for branch in found.values())


def test_what_the_run_record_tells_of_ends_with_a_task_that_is_never_cached(spec):
    """The exit task is told the state of the tasks under the exit handler, which such a task updates last."""
    handlers = [task for task in spec["root"]["dag"]["tasks"] if task.startswith("exit-handler")]
    if handlers and spec["pipelineInfo"]["name"] != "score-large":  # whose shards may all come from the cache
        (name,) = handlers
        assert ends_by_running(spec, component_of(spec, spec["root"]["dag"]["tasks"][name])["dag"])


def test_no_importer_is_needed(spec):
    """An importer takes neither another task's output nor a hub id or a mounted path."""
    assert all("container" in executor for executor in spec["deploymentSpec"]["executors"].values())
    models = {
        name
        for name, component in spec["components"].items()
        if "model" in component.get("inputDefinitions", {}).get("artifacts", {})
    }
    assert not models


def test_no_loop_has_a_name_of_its_own(spec):
    """KFP 2.14 and 2.15 store a loop under its display name, and look for its results under its key."""
    loops = {
        name: task["taskInfo"]["name"]
        for dag in dags(spec)
        for name, task in dag["tasks"].items()
        if "parameterIterator" in task
    }
    assert all(name == shown for name, shown in loops.items())
    assert len(loops) == (spec["pipelineInfo"]["name"] == "score-large")


def test_merged_values_are_parameters(spec):
    """Older backends take a merged artifact from the last branch, whichever ran."""
    for dag in dags(spec):
        for output in dag.get("outputs", {}).get("artifacts", {}).values():
            assert len(output["artifactSelectors"]) == 1


def test_no_placeholder_stands_inside_another_text(spec):
    """The backend replaces one as it is, without escaping, or not at all where it is part of a text."""
    constants = [
        str(given["runtimeValue"]["constant"])
        for dag in dags(spec)
        for task in dag["tasks"].values()
        for given in task.get("inputs", {}).get("parameters", {}).values()
        if "constant" in given.get("runtimeValue", {})
    ]
    assert [text for text in constants if "{{" in text and text != "{{$.pipeline_job_name}}"] == []


@pytest.mark.parametrize("name", DEFINITIONS)
def test_run_record_gets_each_parameter_under_its_own_name(name):
    place = ClusterPlatform(Settings())
    parameters = PIPELINES[name].component_spec.inputs
    built = build(DEFINITIONS[name], place, name=name).pipeline_spec
    given = built.root.dag.tasks["record-end"].inputs.parameters
    assert {key for key, value in given.items() if value.component_input_parameter == key} == set(parameters)
    kinds = built.components["comp-record-end"].input_definitions.parameters
    assert all(
        kinds[key].parameter_type == built.root.input_definitions.parameters[key].parameter_type
        for key in parameters
    )


def test_parameters_named_like_an_input_of_the_run_record_are_refused():
    def define(folder: str) -> None: ...

    with pytest.raises(ValueError, match="record-end has inputs named folder; rename"):
        recorder_of(inspect.signature(define))


def test_task_gets_the_pipelines_parameters_by_name_where_it_is_given_no_other():
    from kfp import dsl

    from calib_components import dpo_align

    def define(place: Platform, seed: int, epochs: int, dpo_epochs: int, model: str) -> None:
        data = dsl.importer(artifact_uri="gs://b/data", artifact_class=dsl.Dataset).output
        place(dpo_align, {"seed": seed, "epochs": epochs, "model": model, "other": 1})(
            data=data, epochs=dpo_epochs
        )

    given = build(define, Platform(), name="some").pipeline_spec.root.dag.tasks["dpo-align"].inputs.parameters
    assert {name: value.component_input_parameter for name, value in given.items()} == {
        "seed": "seed",
        "epochs": "dpo_epochs",
        "model": "model",
    }

"""How a driver finds a task's inputs (backend/src/v2/driver/resolve.go)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from strict_backend.store import Artifact, BackendError, Execution, Store

Spec = Mapping[str, Any]
KINDS = {
    str: ("STRING", "string"),
    bool: ("BOOLEAN", "bool"),
    int: ("NUMBER_INTEGER", "number"),
    float: ("NUMBER_DOUBLE", "number"),
    list: ("LIST", "list"),
    dict: ("STRUCT", "struct"),
}


class NullError(BackendError):
    """A parameter is there, and has no value."""


class Resolver:
    """Finds inputs of the tasks of one run.

    Args:
        store: what was recorded.
        placeholders: values of the run's own placeholders.
        old: whether artifacts of several branches are looked for in the last one (before 2.17).
    """

    def __init__(self, store: Store, placeholders: Mapping[str, str], *, old: bool) -> None:
        self._store, self._placeholders, self._old = store, placeholders, old

    def inputs(
        self, task: Spec, component: Spec, dag: Execution, *, index: int | None = None
    ) -> tuple[dict[str, Any], dict[str, list[Artifact]]]:
        """Parameters and artifacts of a task; of a turn of a loop where `index` is given (102-377)."""
        specs = component.get("inputDefinitions", {}).get("parameters", {})
        given = task.get("inputs", {}).get("parameters", {})
        nulls: set[str] = set()
        if index is not None:
            parameters, artifacts = self._turn(task, dag, index)
        else:
            parameters = {}
            if "dag" in component:
                for name, spec in specs.items():
                    if name not in given and spec.get("isOptional"):
                        parameters[name] = spec.get("defaultValue")
                        if "defaultValue" not in spec:
                            nulls.add(name)
            for name, source in given.items():
                try:
                    parameters[name] = self._parameter(source, task, dag)
                except NullError:
                    if not specs.get(name, {}).get("isOptional"):
                        raise
            artifacts = {
                name: self._artifact(source, dag)
                for name, source in task.get("inputs", {}).get("artifacts", {}).items()
            }
        self._select(given, parameters)
        self._check_types(task, specs, parameters, nulls, in_turn=index is not None)
        return parameters, artifacts

    def _turn(self, task: Spec, loop: Execution, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs of one turn of a loop (258-297)."""
        iterator = task["parameterIterator"]
        parameters = dict(loop.inputs)
        source = iterator["items"].get("inputParameter") or iterator["itemInput"]
        items = items_of(parameters.pop(source))
        parameters[iterator["itemInput"]] = items[index]
        return parameters, self._store.input_artifacts(loop)

    def _select(self, given: Mapping[str, Spec], parameters: dict[str, Any]) -> None:
        """Parts of values, as KFP's compiler asks for them in loops over objects (145-165)."""
        for name, source in given.items():
            selector = source.get("parameterExpressionSelector")
            if selector is None:
                continue
            head, _, key = selector.partition('parseJson(string_value)["')
            assert not head, selector
            assert key.endswith('"]'), selector
            value = parameters[name]
            parameters[name] = (json.loads(value) if isinstance(value, str) else value)[key[:-2]]

    def _check_types(
        self,
        task: Spec,
        specs: Mapping[str, Spec],
        parameters: dict[str, Any],
        nulls: set[str],
        *,
        in_turn: bool,
    ) -> None:
        """Hold values to the component's types; texts take anything (169-256)."""
        iterator = task.get("parameterIterator")
        for name, spec in specs.items():
            if iterator is not None:
                skipped = iterator["items"].get("inputParameter") if in_turn else iterator["itemInput"]
                if name == skipped:
                    continue
            if name not in parameters:
                if not spec.get("isOptional") and "defaultValue" not in spec:
                    raise BackendError(
                        f'neither value nor default value provided for non-optional parameter "{name}"'
                    )
                continue
            value, wanted = parameters[name], spec["parameterType"]
            if name in nulls:
                continue
            if wanted == "STRING":
                parameters[name] = as_text(value)
                continue
            if value is None:
                raise BackendError(f"parameter {name} has unknown protobuf.Value type: <nil>")
            kind, actual = KINDS[type(value)]
            fits = kind == wanted or (kind.startswith("NUMBER") and wanted.startswith("NUMBER"))
            if not fits and (kind, wanted) != ("STRUCT", "TASK_FINAL_STATUS"):
                raise BackendError(f'input parameter "{name}" type mismatch: expect {wanted}, got {actual}')

    def _parameter(self, source: Spec, task: Spec, dag: Execution) -> Any:
        """One parameter by where it comes from (379-496)."""
        if name := source.get("componentInputParameter"):
            if name not in dag.inputs:
                raise BackendError(f"parent DAG does not have input parameter {name}")
            if dag.inputs[name] is None:
                raise NullError(f"the resolved input parameter is null: {name}")
            return dag.inputs[name]
        if made := source.get("taskOutputParameter"):
            return self._upstream_parameter(made, dag)
        if "taskFinalStatus" in source:
            return self._final_status(task, dag)
        value = source["runtimeValue"]["constant"]
        return self._placeholders.get(value, value) if isinstance(value, str) else value

    def _final_status(self, task: Spec, dag: Execution) -> dict[str, Any]:
        ended = self._store.below(dag)[f"{task['dependentTasks'][0]}_{dag.id}"]
        return {
            "state": ended.state,
            "pipelineTaskName": ended.task_name,
            "pipelineJobResourceName": self._placeholders["{{$.pipeline_job_resource_name}}"],
            "error": {},
        }

    def _artifact(self, source: Spec, dag: Execution) -> list[Artifact]:
        """One artifact by where it comes from (524-571)."""
        if inner := source.get("componentInputArtifact"):
            found = self._store.input_artifacts(dag)
            if inner not in found:
                raise BackendError(f"parent DAG does not have input artifact {inner}")
            return found[inner]
        return self._upstream_artifact(source["taskOutputArtifact"], dag)

    def _producer(self, made: Spec, dag: Execution, message: str) -> tuple[str, dict[str, Execution]]:
        name = f"{made['producerTask']}_{dag.id}"
        if dag.iteration_index is not None:
            name = f"{name}_idx_{dag.iteration_index}"
        tasks = self._store.below(dag)
        if name not in tasks:
            raise BackendError(message.format(name))
        return name, tasks

    def _upstream_parameter(self, made: Spec, dag: Execution) -> Any:
        """An output of another task, followed through DAGs to the container that made it (577-695)."""
        name, tasks = self._producer(made, dag, "producer task, {}, not in tasks")
        key, current = made["outputParameterKey"], tasks[name]
        while current.kind == "dag":
            if current.parameter_producers is None:
                raise BackendError(
                    f"task, {current.task_name}, does not have a parameter_producer_task custom property"
                )
            if self._turns(current):
                return [
                    self._made(one, last) for one, last in self._collect(name, tasks, key, artifact=False)
                ]
            name, key = self._inner(current, tasks, name, key, artifact=False)
            if name not in tasks:
                raise BackendError(f"subTaskName, {name}, not in tasks")
            current = tasks[name]
        return self._made(current, key)

    def _upstream_artifact(self, made: Spec, dag: Execution) -> list[Artifact]:
        """The same for artifacts (701-810)."""
        name, tasks = self._producer(made, dag, 'cannot find producer task "{}"')
        key, current = made["outputArtifactKey"], tasks[name]
        while current.kind == "dag":
            if self._turns(current):
                found = self._collect(name, tasks, key, artifact=True)
                return [self._stored(one, last) for one, last in found]
            name, key = self._inner(current, tasks, name, key, artifact=True)
            if name not in tasks:
                raise BackendError(f"subTaskName, {name}, not in tasks")
            current = tasks[name]
        return [self._stored(current, key)]

    def _made(self, execution: Execution, key: str) -> Any:
        return execution.outputs.get(key)

    def _stored(self, execution: Execution, key: str) -> Artifact:
        found = self._store.output_artifacts(execution)
        if key not in found:
            raise BackendError("panic: invalid memory address or nil pointer dereference")
        return found[key]

    def _turns(self, task: Execution) -> int:
        """How many turns a loop has, or the loop that this is a turn of (1161-1172)."""
        if task.iteration_count is not None:
            return task.iteration_count
        return self._store.executions[task.parent].iteration_count or 0

    def _inner(
        self, dag: Execution, tasks: Mapping[str, Execution], name: str, key: str, *, artifact: bool
    ) -> tuple[str, str]:
        """The task that a DAG's output comes from, and the output's name there (1030-1150)."""
        producers = dag.artifact_producers if artifact else dag.parameter_producers
        if producers is None:
            return name, key
        if key not in producers:
            raise BackendError(f'output key "{key}" not found in parent task "{dag.task_name}"')
        output = producers[key]
        if artifact:
            selectors, part = output["artifactSelectors"], "outputArtifactKey"
            if self._old:
                selectors = selectors[-1:]
        elif "valueFromParameter" in output:
            selectors, part = [output["valueFromParameter"]], "outputParameterKey"
        else:
            selectors, part = output["valueFromOneof"]["parameterSelectors"], "outputParameterKey"
        is_merge = len(selectors) > 1 or "valueFromOneof" in output
        for selector in selectors:
            inner = f"{selector['producerSubtask']}_{dag.id}"
            if not is_merge or (inner in tasks and tasks[inner].state in ("CACHED", "COMPLETE")):
                return inner, selector[part]
        raise BackendError("processing OneOf: No successful task found")

    def _collect(
        self, name: str, tasks: Mapping[str, Execution], key: str, *, artifact: bool
    ) -> list[tuple[Execution, str]]:
        """The containers that made an output in all turns of a loop (861-996)."""
        found, waiting = [], [name]
        before, before_key, inner = tasks[name].task_name, key, ""
        while waiting:
            current = tasks[waiting.pop(0)]
            if current.task_name == before:
                key = before_key
            before, before_key = current.task_name, key
            inner, key = self._inner(current, tasks, inner, key, artifact=artifact)
            if current.kind == "container":
                found.append((current, key))
            elif current.iteration_count is None:
                index = current.iteration_index
                waiting.append(inner if index is None else f"{inner}_idx_{index}")
            else:
                turns = range(current.iteration_count)
                waiting += [f"{current.task_name}_{current.id}_idx_{turn}" for turn in turns]
        return found


def items_of(value: Any) -> list[Any]:
    """What a loop goes over (util.go:126-143)."""
    if isinstance(value, str):
        value = json.loads(value)
        return value if isinstance(value, list) else []
    if not isinstance(value, list):
        raise BackendError(f"value of type {type(value).__name__} cannot be iterated")
    return value


def as_text(value: Any) -> str:
    """A value as text (metadata/converter.go:15-48)."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, separators=(",", ":"))

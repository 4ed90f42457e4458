"""The metadata store: executions, artifacts, and how the backend reads and changes them."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

DONE = ("COMPLETE", "CACHED", "CANCELED")


class BackendError(Exception):
    """What a driver, a launcher or the server stops with."""


@dataclasses.dataclass
class Artifact:
    """An artifact that was recorded."""

    id: int
    type: str
    uri: str
    metadata: dict[str, Any]


@dataclasses.dataclass
class Execution:
    """What the store knows of a task, of a DAG, or of one turn of a loop."""

    id: int
    run: str
    kind: str  # container, importer or dag
    task_name: str
    parent: int
    state: str
    inputs: dict[str, Any]
    input_artifacts: list[tuple[str, int]]
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    output_artifacts: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    iteration_index: int | None = None
    iteration_count: int | None = None
    total_dag_tasks: int = 0
    parameter_producers: dict[str, Any] | None = None
    artifact_producers: dict[str, Any] | None = None
    fingerprint: str = ""


class Store:
    """Everything that was recorded, over all runs."""

    def __init__(self, *, propagates: bool) -> None:
        self.executions: dict[int, Execution] = {}
        self.artifacts: dict[int, Artifact] = {}
        self._ids = itertools.count(1)
        self._propagates = propagates

    def create(self, **content: Any) -> Execution:
        """Record an execution; one artifact can be one of its inputs (ml-metadata's table Event)."""
        artifacts = [artifact for _, artifact in content["input_artifacts"]]
        if len(set(artifacts)) < len(artifacts):
            raise BackendError("UNIQUE constraint failed: Event.artifact_id, Event.execution_id, Event.type")
        made = Execution(id=next(self._ids), **content)
        self.executions[made.id] = made
        return made

    def record(self, kind: str, uri: str, metadata: dict[str, Any]) -> Artifact:
        """Record an artifact."""
        made = Artifact(next(self._ids), kind, uri, dict(metadata))
        self.artifacts[made.id] = made
        return made

    def matching(self, kind: str, uri: str, metadata: dict[str, Any]) -> Artifact | None:
        """The artifact that an importer which doesn't import again takes (client.go:1303-1347)."""
        for one in self.artifacts.values():
            if (one.type, one.uri) == (kind, uri) and metadata.items() <= one.metadata.items():
                return one
        return None

    def input_artifacts(self, execution: Execution) -> dict[str, list[Artifact]]:
        """One artifact for each name, and one name for each artifact (client.go:1150-1190)."""
        name_by_id = {artifact: name for name, artifact in execution.input_artifacts}
        return {name: [self.artifacts[artifact]] for artifact, name in name_by_id.items()}

    def output_artifacts(self, execution: Execution) -> dict[str, Artifact]:
        """The same for outputs (client.go:1112-1148)."""
        name_by_id = {artifact: name for name, artifact in execution.output_artifacts}
        return {name: self.artifacts[artifact] for artifact, name in name_by_id.items()}

    def in_dag(self, dag: Execution) -> dict[str, Execution]:
        """Executions of a DAG by the names that they are looked for (client.go:986-1079)."""
        found: dict[str, Execution] = {}
        for one in self.executions.values():
            if one.run != dag.run or one.parent != dag.id:
                continue
            name = f"{one.task_name}_{dag.id}"
            index = one.iteration_index if one.iteration_index is not None else dag.iteration_index
            if index is not None:
                name = f"{name}_idx_{index}"
            if name in found:
                raise BackendError(
                    f"failed to get executions in DAG: two tasks have the same task name {name!r}, "
                    f"id1={found[name].id} id2={one.id}"
                )
            found[name] = one
        return found

    def below(self, dag: Execution) -> dict[str, Execution]:
        """Executions of a DAG and of all inside it (resolve.go:62-100)."""
        direct = self.in_dag(dag)
        found = dict(direct)
        for one in direct.values():
            if one.kind == "dag":
                found |= self.below(one)
        return found

    def update_state(self, dag: Execution) -> None:
        """What a launcher does when its task has ended (client.go:800-878; 2.16.1: client.go:755-794)."""
        counts_turns = self._propagates and dag.iteration_count is not None
        expected = dag.iteration_count if counts_turns else dag.total_dag_tasks
        if self._propagates and not expected and not counts_turns:
            return  # the pipeline's own DAG
        states = [one.state for one in self.in_dag(dag).values()]
        if sum(state in DONE for state in states) == expected:
            dag.state = "COMPLETE"
        elif "FAILED" in states:
            dag.state = "FAILED"
        else:
            return
        if self._propagates and dag.parent:
            self.update_state(self.executions[dag.parent])

"""A compiled package as a graph: its DAGs, their tasks, and where each input comes from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from calib_core.errors import ConfigError

ROOT = "root"
EXIT_STRATEGY = "ALL_UPSTREAM_TASKS_COMPLETED"
NO_LAUNCHER = ("argostub/createpvc", "argostub/deletepvc")
"""Images of tasks that KFP's driver does by itself (backend/src/v2/driver/util.go:42-45)."""

Node = Mapping[str, Any]


def part(node: Node, *keys: str) -> Node:
    """What lies at `keys`, one below the other; empty if it is left out."""
    for key in keys:
        node = node.get(key, {})
    return node


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of a DAG.

    Attributes:
        key: Its name in the DAG, by which the backend looks for it.
        spec: Its `PipelineTaskSpec`.
        dag: The DAG that it stands in.
    """

    key: str
    spec: Node
    dag: Dag

    @property
    def place(self) -> str:
        """Where it stands in the package."""
        return f"{self.dag.place}.tasks.{self.key}"

    @property
    def component_name(self) -> str:
        """Key of its component."""
        return str(self.spec.get("componentRef", {}).get("name", ""))

    @property
    def component(self) -> Node:
        """Its component."""
        return self.dag.graph.components.get(self.component_name, {})

    @property
    def inner(self) -> Dag | None:
        """The DAG that it stands for; None for a container or an importer."""
        return self.dag.graph.dag(self.component_name) if "dag" in self.component else None

    @property
    def executor(self) -> Node:
        """What runs it; empty for a DAG."""
        return self.dag.graph.executors.get(self.component.get("executorLabel", ""), {})

    @property
    def importer(self) -> Node | None:
        """Its importer, where it is one."""
        return self.executor.get("importer")

    @property
    def container(self) -> Node | None:
        """Its container, where it is one."""
        return self.executor.get("container")

    @property
    def parameters(self) -> Mapping[str, Node]:
        """Where its input parameters come from, by name."""
        return part(self.spec, "inputs", "parameters")

    @property
    def artifacts(self) -> Mapping[str, Node]:
        """Where its input artifacts come from, by name."""
        return part(self.spec, "inputs", "artifacts")

    @property
    def conditional(self) -> bool:
        """Whether it may be left out."""
        return bool(self.spec.get("triggerPolicy", {}).get("condition"))

    @property
    def ends(self) -> bool:
        """Whether it runs after others however they ended."""
        return bool(part(self.spec, "triggerPolicy").get("strategy") == EXIT_STRATEGY)

    @property
    def cached(self) -> bool:
        """Whether an earlier task's outputs may stand for its own."""
        return bool(self.spec.get("cachingOptions", {}).get("enableCache"))

    @property
    def is_used(self) -> bool:
        """Whether another task, or its DAG's output, takes an output of it."""
        sources = [
            one
            for task in self.dag.tasks.values()
            for one in (*task.parameters.values(), *task.artifacts.values())
        ]
        made = [source.get(kind, {}).get("producerTask") for source in sources for kind in _FROM_TASK]
        return self.key in {*made, *self.dag.output_producers}

    @property
    def sources(self) -> frozenset[str]:
        """Keys of the tasks whose outputs it takes."""
        given = [*self.parameters.values(), *self.artifacts.values()]
        named = [source.get(kind, {}) for source in given for kind in _FROM_TASK]
        return frozenset(one["producerTask"] for one in named if one)

    @property
    def producers(self) -> frozenset[str]:
        """Keys of the tasks that it waits for."""
        return self.sources | frozenset(self.spec.get("dependentTasks", []))


_FROM_TASK = ("taskOutputParameter", "taskOutputArtifact")


@dataclasses.dataclass(frozen=True)
class Dag:
    """A DAG: the pipeline itself, a condition's branch, a loop, an exit handler, or an inner pipeline.

    Attributes:
        name: Key of its component, or `root`.
        component: The component.
        graph: The package.
    """

    name: str
    component: Node
    graph: Graph

    @property
    def place(self) -> str:
        """Where it stands in the package."""
        return f"{self.name}.dag" if self.name == ROOT else f"components.{self.name}.dag"

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        """Its tasks by key."""
        found = self.component.get("dag", {}).get("tasks", {})
        return {key: Task(key, spec, self) for key, spec in found.items()}

    @property
    def inputs(self) -> Mapping[str, Node]:
        """Its input parameters' definitions by name."""
        return part(self.component, "inputDefinitions", "parameters")

    def outputs(self, kind: str) -> Mapping[str, Node]:
        """Where its outputs come from, by name; `kind` is `parameters` or `artifacts`."""
        found: Mapping[str, Node] = self.component.get("dag", {}).get("outputs", {}).get(kind, {})
        return found

    @property
    def output_producers(self) -> Iterator[str]:
        """Keys of the tasks that its outputs come from."""
        for output in self.outputs("artifacts").values():
            yield from (one["producerSubtask"] for one in output["artifactSelectors"])
        for output in self.outputs("parameters").values():
            several = output.get("valueFromOneof", {}).get("parameterSelectors", [])
            yield from (one["producerSubtask"] for one in (output.get("valueFromParameter"), *several) if one)

    def before(self, task: Task) -> set[str]:
        """Keys of all tasks that have ended well when `task` starts."""
        found: set[str] = set()
        waiting = list(task.producers)
        while waiting:
            key = waiting.pop()
            if key not in found and key in self.tasks:
                found.add(key)
                waiting += self.tasks[key].producers
        return found

    @functools.cached_property
    def users(self) -> tuple[Task, ...]:
        """The tasks that stand for this DAG."""
        return tuple(task for task in self.graph.tasks() if task.component_name == self.name)

    @functools.cached_property
    def conditional(self) -> bool:
        """Whether it may be left out: it, or a DAG around it, has a condition."""
        return any(user.conditional or user.dag.conditional for user in self.users)


@dataclasses.dataclass(frozen=True)
class Graph:
    """A package.

    Attributes:
        pipeline: The document with the pipeline.
        platforms: The documents with what only a platform understands.
    """

    pipeline: Node
    platforms: tuple[Node, ...] = ()

    @property
    def components(self) -> Mapping[str, Node]:
        """Its components by key."""
        return part(self.pipeline, "components")

    @property
    def executors(self) -> Mapping[str, Node]:
        """What runs components, by label."""
        return part(self.pipeline, "deploymentSpec", "executors")

    @property
    def kubernetes(self) -> Node:
        """What only Kubernetes understands: `deploymentSpec` and `pipelineConfig`."""
        return next(
            (one["platforms"]["kubernetes"] for one in self.platforms if "kubernetes" in one["platforms"]), {}
        )

    def kubernetes_config(self, task: Task) -> Node:
        """What Kubernetes is told of a task."""
        label = task.component.get("executorLabel", "")
        found: Node = self.kubernetes.get("deploymentSpec", {}).get("executors", {}).get(label, {})
        return found

    def dag(self, name: str) -> Dag:
        """The DAG of a component's key, or the pipeline's own for `root`."""
        return self._dags[name]

    def dags(self) -> Iterable[Dag]:
        """All DAGs, the pipeline's own first."""
        return self._dags.values()

    def tasks(self) -> Iterator[Task]:
        """All tasks."""
        for dag in self.dags():
            yield from dag.tasks.values()

    @functools.cached_property
    def _dags(self) -> dict[str, Dag]:
        found = {ROOT: self.pipeline.get("root", {}), **self.components}
        return {name: Dag(name, component, self) for name, component in found.items() if "dag" in component}


def read_graph(path: Path) -> Graph:
    """Read a package's documents.

    Raises:
        ConfigError: the file isn't YAML, or no package.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = [one for one in yaml.load_all(path.read_text(encoding="utf-8"), loader) if one]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: can't be read as YAML ({error}); give a compiled pipeline") from None
    pipelines = [one for one in documents if isinstance(one, dict) and "pipelineInfo" in one]
    if len(pipelines) != 1:
        raise ConfigError(f"{path}: holds {len(pipelines)} pipelines; give a package with one")
    platforms = [one for one in documents if isinstance(one, dict) and isinstance(one.get("platforms"), dict)]
    return Graph(pipelines[0], tuple(platforms))

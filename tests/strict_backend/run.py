"""One run of a package: Argo's DAGs, drivers and importers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strict_backend.cel import holds
from strict_backend.launcher import Launcher
from strict_backend.resolve import Resolver, items_of
from strict_backend.store import Artifact, BackendError, Execution

if TYPE_CHECKING:
    from strict_backend.backend import Backend, Result

Spec = Mapping[str, Any]
SUCCEEDED, FAILED, SKIPPED, OMITTED = "Succeeded", "Failed", "Skipped", "Omitted"
SCHEMES = ("gs://", "s3://", "minio://", "mem://")
NO_LAUNCHER = ("argostub/createpvc", "argostub/deletepvc")
EXIT = "ALL_UPSTREAM_TASKS_COMPLETED"
POD_S = (5.0, 20.0)
"""Seconds that a driver's or an importer's pod takes."""


class Run:
    """One run of a package."""

    def __init__(self, backend: Backend, documents: Sequence[Spec], result: Result) -> None:
        self.backend, self.store, self.result = backend, backend.store, result
        self.spec, self.platforms = documents[0], documents[1:]
        self.name = self.spec["pipelineInfo"]["name"]
        self.id = f"run-{backend.runs}"
        placeholders = {
            "{{$.pipeline_job_name}}": f"{self.name} {backend.runs}",
            "{{$.pipeline_job_resource_name}}": f"{self.name}-{backend.runs:05}",
            "{{$.pipeline_job_uuid}}": self.id,
        }
        if backend.version >= (2, 16):  # whose driver hasn't been told of them yet
            time = "2026-01-01T00:00:00Z" if backend.version >= (2, 17) else ""
            placeholders["{{$.pipeline_job_create_time_utc}}"] = time
            placeholders["{{$.pipeline_job_schedule_time_utc}}"] = time
        self.resolver = Resolver(self.store, placeholders, old=backend.version < (2, 17))

    async def start(self, parameters: dict[str, Any]) -> None:
        """Run it with these parameters, defaults for the others (argocompiler/argo.go:95-107)."""
        for name, spec in self.spec["root"].get("inputDefinitions", {}).get("parameters", {}).items():
            if name not in parameters:
                if "defaultValue" not in spec and not spec.get("isOptional"):
                    raise BackendError(f"parameter {name} is not optional, yet has no value")
                parameters[name] = spec.get("defaultValue")
        root = self.create("dag", "", None, parameters, {})
        self.result.phase = await self.dag(self.spec["root"], root, "", None)

    def create(
        self,
        kind: str,
        name: str,
        dag: Execution | None,
        parameters: dict[str, Any],
        artifacts: Mapping[str, list[Artifact]],
        **more: Any,
    ) -> Execution:
        """Record an execution."""
        return self.store.create(
            run=self.id,
            kind=kind,
            task_name=name,
            parent=dag.id if dag else 0,
            state=more.pop("state", "RUNNING"),
            inputs=parameters,
            input_artifacts=[(name, one.id) for name, found in artifacts.items() for one in found],
            **more,
        )

    async def pod(self) -> None:
        """Let the time pass that a driver's or an importer's pod takes."""
        await asyncio.sleep(self.backend.random.uniform(*POD_S))

    # Argo's DAGs (argocompiler/dag.go; argo-workflows workflow/controller/dag.go)

    async def dag(self, component: Spec, execution: Execution, path: str, policy: Spec | None) -> str:
        """Run a DAG's tasks, each once all that it waits for has succeeded.

        A DAG has failed once one of its tasks has and no other is running (dag.go:134-228).
        """
        tasks: Mapping[str, Spec] = component["dag"]["tasks"]
        exits = {key for key, task in tasks.items() if task.get("triggerPolicy", {}).get("strategy") == EXIT}
        hooks = {awaited: key for key in sorted(exits) for awaited in tasks[key]["dependentTasks"]}
        phases: dict[str, str] = {}
        running: dict[asyncio.Task[str], str] = {}
        waiting = [key for key in tasks if key not in exits]

        def begin(key: str) -> None:
            here = f"{path}/{key}" if path else key
            running[asyncio.create_task(self.task(key, tasks[key], execution, here, policy))] = key

        while True:
            while ready := [key for key in waiting if self.awaited(tasks[key]) <= phases.keys()]:
                waiting.remove(key := ready[0])
                if all(phases[one] == SUCCEEDED for one in self.awaited(tasks[key])):
                    if FAILED not in phases.values() or running:
                        begin(key)
                else:
                    phases[key] = self.result.phases[f"{path}/{key}" if path else key] = OMITTED
            if not running:
                break
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                key = running.pop(one)
                phases[key] = self.result.phases[f"{path}/{key}" if path else key] = one.result()
                if key in hooks and phases[key] != SKIPPED:
                    begin(hooks[key])
        return FAILED if FAILED in phases.values() else SUCCEEDED

    def awaited(self, task: Spec) -> set[str]:
        """Tasks that one waits for; an importer waits for none (dag.go:337-347)."""
        if "importer" in self.executor(task):
            return set()
        inputs = task.get("inputs", {})
        sources = [*inputs.get("parameters", {}).values(), *inputs.get("artifacts", {}).values()]
        made = [one.get("taskOutputParameter") or one.get("taskOutputArtifact") for one in sources]
        return {*task.get("dependentTasks", []), *(one["producerTask"] for one in made if one)}

    def component(self, task: Spec) -> Spec:
        """A task's component."""
        found: Spec = self.spec["components"][task["componentRef"]["name"]]
        return found

    def executor(self, task: Spec) -> Spec:
        """What runs a task; empty for a DAG."""
        label = self.component(task).get("executorLabel", "")
        found: Spec = self.spec.get("deploymentSpec", {}).get("executors", {}).get(label, {})
        return found

    async def task(self, key: str, task: Spec, dag: Execution, path: str, policy: Spec | None) -> str:
        """Run a task; what goes wrong outside of programs fails it."""
        policy = task.get("retryPolicy", policy)
        await self.pod()
        try:
            if "parameterIterator" in task:
                return await self.loop(key, task, dag, path, policy)
            if "dag" in self.component(task):
                made = self.driven(key, task, dag, path)
                return SKIPPED if made.state == "CANCELED" else await self.inner(task, made, path, policy)
            if "importer" in self.executor(task):
                return self.importer(task, self.executor(task)["importer"], dag, path)
            return await self.container(key, task, dag, path, policy)
        except BackendError as error:
            self.result.errors[path] = str(error)
            return FAILED

    # DAG drivers (driver/dag.go)

    def driven(self, key: str, task: Spec, dag: Execution, path: str, index: int | None = None) -> Execution:
        """What a DAG's driver leaves; CANCELED where its condition isn't met."""
        component = self.component(task)
        parameters, artifacts = self.resolver.inputs(task, component, dag, index=index)
        condition = task.get("triggerPolicy", {}).get("condition")
        met = not condition or holds(condition, parameters)
        outputs = component["dag"].get("outputs", {})
        count = None
        if met and index is None and "parameterIterator" in task:
            items, item = task["parameterIterator"]["items"], task["parameterIterator"]["itemInput"]
            if "raw" in items:
                parameters[item] = json.loads(items["raw"])
            count = len(items_of(parameters[items.get("inputParameter", item)]))
        self.result.executions[path] = self.create(
            "dag",
            key,
            dag,
            parameters,
            artifacts,
            state="RUNNING" if met else "CANCELED",
            iteration_index=index,
            iteration_count=count,
            total_dag_tasks=len(component["dag"]["tasks"]),
            parameter_producers=outputs.get("parameters"),
            artifact_producers=outputs.get("artifacts"),
        )
        return self.result.executions[path]

    async def inner(self, task: Spec, made: Execution, path: str, policy: Spec | None) -> str:
        return await self.dag(self.component(task), made, path, policy)

    async def loop(self, key: str, task: Spec, dag: Execution, path: str, policy: Spec | None) -> str:
        if self.backend.version < (
            2,
            16,
        ):  # whose compiler hands on no name (2.15.0: dag.go:417-425, 531-535)
            key = task["taskInfo"]["name"]
        head = self.driven(key, task, dag, path)
        if head.state == "CANCELED":
            return SKIPPED

        async def turn(index: int) -> str:
            await self.pod()
            made = self.driven(key, task, head, f"{path}({index})", index)
            return await self.inner(task, made, f"{path}({index})", policy)

        phases = await asyncio.gather(*map(turn, range(head.iteration_count or 0)))
        return FAILED if FAILED in phases else SUCCEEDED

    # Importers (component/importer_launcher.go)

    def importer(self, task: Spec, importer: Spec, dag: Execution, path: str) -> str:
        made = self.create("importer", task["taskInfo"]["name"], dag, {}, {})
        self.result.executions[path] = made
        uri = _imported_uri(task, importer, dag)
        kind = importer["typeSchema"]["schemaTitle"]
        metadata = dict(importer.get("metadata", {}))
        if uri.startswith("oci://"):
            if kind != "system.Model":
                raise BackendError(f"the {kind} artifact type does not support OCI registries")
        elif not uri.startswith(SCHEMES):
            raise BackendError(f"no provider scheme found in artifact URI: {uri}")
        else:
            metadata["store_session_info"] = "fromEnv"
        found = None if importer.get("reimport") else self.store.matching(kind, uri, metadata)
        (name,) = self.component(task)["outputDefinitions"]["artifacts"]
        made.output_artifacts = [(name, (found or self.store.record(kind, uri, metadata)).id)]
        made.state = "COMPLETE"
        return SUCCEEDED

    # Containers (driver/container.go)

    async def container(self, key: str, task: Spec, dag: Execution, path: str, policy: Spec | None) -> str:
        component, container = self.component(task), self.executor(task)["container"]
        assert container["image"] not in NO_LAUNCHER
        parameters, artifacts = self.resolver.inputs(task, component, dag)
        condition = task.get("triggerPolicy", {}).get("condition")
        met = not condition or holds(condition, parameters)
        cached = met and task.get("cachingOptions", {}).get("enableCache", False)
        made = self.create(
            "container",
            key,
            dag,
            parameters,
            artifacts,
            state="RUNNING" if met else "CANCELED",
            fingerprint=self.fingerprint(component, container, parameters, artifacts) if cached else "",
        )
        self.result.executions[path] = made
        if not met:
            return SKIPPED
        known = self.backend.cache.get((self.name, made.fingerprint)) if cached else None
        if known is not None:
            made.outputs, made.output_artifacts, made.state = known.outputs, known.output_artifacts, "CACHED"
            return SUCCEEDED
        launcher = Launcher(self.backend, self.result, task, component, container, made, artifacts, path)
        if not await launcher.succeeds(f"{self.backend.root}/{self.name}/{self.id}", policy):
            return FAILED
        if cached:
            self.backend.cache[self.name, made.fingerprint] = made
        return SUCCEEDED

    def fingerprint(
        self, component: Spec, container: Spec, parameters: Spec, artifacts: Mapping[str, list[Artifact]]
    ) -> str:
        """What a cached task is found by (cacheutils/cache.go:173-229)."""
        kubernetes = next((one["platforms"]["kubernetes"] for one in self.platforms), {})
        config = kubernetes.get("deploymentSpec", {}).get("executors", {}).get(component["executorLabel"], {})
        claims = [one["pvcNameParameter"]["runtimeValue"]["constant"] for one in config.get("pvcMount", [])]
        content = [
            {name: [one.id for one in found] for name, found in artifacts.items()},
            dict(parameters),
            component.get("outputDefinitions", {}),
            [container["image"], *container.get("command", []), *container.get("args", [])],
            sorted(claims),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _imported_uri(task: Spec, importer: Spec, dag: Execution) -> str:
    if "constant" in importer["artifactUri"]:
        if not importer["artifactUri"]["constant"]:
            raise BackendError("empty Artifact URI constant value")
        return str(importer["artifactUri"]["constant"])
    name = importer["artifactUri"]["runtimeParameter"]
    outer = task["inputs"]["parameters"][name].get("componentInputParameter", "")
    if outer not in dag.inputs:
        raise BackendError(f"error resolving artifact URI: parent DAG does not have input parameter {outer}")
    if not dag.inputs[outer]:
        raise BackendError(f"empty artifact URI runtime value for parameter {name}")
    return str(dag.inputs[outer])

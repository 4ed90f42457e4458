"""Drivers, launchers and Argo: one run of a package after the other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strict_backend.cel import holds
from strict_backend.launcher import (
    FAILURE,
    LOST,
    Call,
    PodLostError,
    Program,
    TaskFailedError,
    check_outputs,
    compiled,
    provisioned,
    seconds,
)
from strict_backend.resolve import Resolver, items_of
from strict_backend.store import Artifact, BackendError, Execution, Store

Spec = Mapping[str, Any]
SUCCEEDED, FAILED, SKIPPED, OMITTED = "Succeeded", "Failed", "Skipped", "Omitted"
SCHEMES = ("gs://", "s3://", "minio://", "mem://")
NO_LAUNCHER = ("argostub/createpvc", "argostub/deletepvc")
EXIT = "ALL_UPSTREAM_TASKS_COMPLETED"
ROOT = "minio://mlpipeline/v2/artifacts"


@dataclasses.dataclass
class Result:
    """How a run went.

    Attributes:
        phase: `Succeeded` or `Failed`.
        phases: Phases of all tasks by their path of keys, such as `exit-handler-1/evaluate`.
        errors: What drivers, importers and launchers said, by path.
        calls: All programs that were started, in order.
        states: The metadata store's states by path.
    """

    phase: str = SUCCEEDED
    phases: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    calls: list[Call] = dataclasses.field(default_factory=list)
    executions: dict[str, Execution] = dataclasses.field(default_factory=dict)

    @property
    def states(self) -> dict[str, str]:
        return {path: execution.state for path, execution in self.executions.items()}

    @property
    def ran(self) -> list[str]:
        """Keys of the tasks whose programs were started, once for each attempt."""
        return [call.task for call in self.calls]

    def outputs(self, key: str) -> dict[str, Any]:
        """Output parameters of the task of that key."""
        (found,) = [one for path, one in self.executions.items() if path.rpartition("/")[2] == key]
        return found.outputs


class Backend:
    """An installation: its metadata store, its cache, and what runs there.

    Args:
        programs: what components do, by their name without the number that tells tasks apart.
        version: release of Kubeflow Pipelines.
        seed: chooses the order of tasks that are ready.
        retried: what is tried again, of `FAILURE` and `LOST`; what a stock installation of the release tries
            again (manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml:55-59)
            where left out.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        *,
        version: tuple[int, int] = (2, 17),
        seed: int = 0,
        retried: Sequence[str] = (),
    ) -> None:
        self.programs = dict(programs)
        self.version = version
        self.store = Store(propagates=version >= (2, 17))
        self.cache: dict[tuple[str, str], Execution] = {}
        self.clock_s = 0.0
        self.retried = tuple(retried) or ((FAILURE,) if version < (2, 17) else (LOST,))
        self.random = random.Random(seed)  # noqa: S311 - an order, no secret
        self.runs = 0

    def run(self, documents: Sequence[Spec], parameters: Mapping[str, Any] | None = None) -> Result:
        """Run a package with the parameters given, defaults for the others."""
        self.runs += 1
        return _Run(self, documents).start(dict(parameters or {}))


class _Run:
    def __init__(self, backend: Backend, documents: Sequence[Spec]) -> None:
        self.backend, self.store = backend, backend.store
        self.spec, self.platforms = documents[0], documents[1:]
        self.name = self.spec["pipelineInfo"]["name"]
        self.id = f"run-{backend.runs}"
        self.result = Result()
        self.placeholders = {
            "{{$.pipeline_job_name}}": f"{self.name} {backend.runs}",
            "{{$.pipeline_job_resource_name}}": f"{self.name}-{backend.runs:05}",
            "{{$.pipeline_job_uuid}}": self.id,
        }
        if backend.version >= (2, 16):
            self.placeholders["{{$.pipeline_job_create_time_utc}}"] = "2026-01-01T00:00:00Z"
            self.placeholders["{{$.pipeline_job_schedule_time_utc}}"] = "2026-01-01T00:00:00Z"

    def start(self, parameters: dict[str, Any]) -> Result:
        for name, spec in self.spec["root"].get("inputDefinitions", {}).get("parameters", {}).items():
            if name not in parameters:
                if "defaultValue" not in spec and not spec.get("isOptional"):
                    raise BackendError(
                        f"parameter {name} is not optional, yet has neither default value nor user "
                        "provided value"
                    )
                parameters[name] = spec.get("defaultValue")
        root = self.store.create(
            run=self.id,
            kind="dag",
            task_name="",
            parent=0,
            state="RUNNING",
            inputs=parameters,
            input_artifacts=[],
        )
        self.result.phase = self.dag(self.spec["root"], root, "", None)
        return self.result

    # Argo's DAGs (argocompiler/dag.go; argo-workflows workflow/controller/dag.go)

    def dag(self, component: Spec, execution: Execution, path: str, policy: Spec | None) -> str:
        """Run a DAG's tasks: each once all that it waits for has succeeded; none after one has failed."""
        tasks = component["dag"]["tasks"]
        phases: dict[str, str] = {}
        ends = {key for key, task in tasks.items() if task.get("triggerPolicy", {}).get("strategy") == EXIT}
        waiting = [key for key in tasks if key not in ends]
        hooks = {task: key for key in sorted(ends) for task in tasks[key]["dependentTasks"]}
        while ready := [key for key in waiting if self.awaited(tasks[key]) <= phases.keys()]:
            key = self.chosen(ready, tasks)
            waiting.remove(key)
            here = f"{path}/{key}" if path else key
            if FAILED in phases.values():
                continue
            if all(phases[one] == SUCCEEDED for one in self.awaited(tasks[key])):
                phases[key] = self.task(key, tasks[key], execution, here, policy)
            else:
                phases[key] = OMITTED
            self.result.phases[here] = phases[key]
            if key in hooks and phases[key] in (SUCCEEDED, FAILED):
                end = hooks[key]
                there = f"{path}/{end}" if path else end
                phases[end] = self.task(end, tasks[end], execution, there, policy)
                self.result.phases[there] = phases[end]
        assert not waiting or FAILED in phases.values(), f"{path}: a cycle among {waiting}"
        return FAILED if FAILED in phases.values() else SUCCEEDED

    def awaited(self, task: Spec) -> set[str]:
        """Tasks that one waits for; an importer waits for none (dag.go:337-347)."""
        if "importer" in self.executor(task):
            return set()
        inputs = task.get("inputs", {})
        sources = [*inputs.get("parameters", {}).values(), *inputs.get("artifacts", {}).values()]
        made = [one.get("taskOutputParameter") or one.get("taskOutputArtifact") for one in sources]
        return {*task.get("dependentTasks", []), *(one["producerTask"] for one in made if one)}

    def chosen(self, ready: list[str], tasks: Mapping[str, Spec]) -> str:
        importers = [key for key in ready if "importer" in self.executor(tasks[key])]
        return self.backend.random.choice(sorted(importers or ready))

    def component(self, task: Spec) -> Spec:
        found: Spec = self.spec["components"][task["componentRef"]["name"]]
        return found

    def executor(self, task: Spec) -> Spec:
        label = self.component(task).get("executorLabel", "")
        found: Spec = self.spec.get("deploymentSpec", {}).get("executors", {}).get(label, {})
        return found

    def task(self, key: str, task: Spec, dag: Execution, path: str, policy: Spec | None) -> str:
        """Run a task; what goes wrong outside of programs fails it."""
        policy = task.get("retryPolicy", policy)
        try:
            if "dag" in self.component(task):
                if "parameterIterator" in task:
                    return self.loop(key, task, dag, path, policy)
                return self.inner(key, task, dag, path, policy)
            if "importer" in self.executor(task):
                return self.importer(task, self.executor(task)["importer"], dag, path)
            return self.container(key, task, dag, path, policy)
        except BackendError as error:
            self.result.errors[path] = str(error)
            return FAILED

    # DAG drivers (driver/dag.go)

    def driven(self, key: str, task: Spec, dag: Execution, path: str, index: int | None = None) -> Execution:
        """What a DAG's driver leaves; CANCELED where its condition isn't met."""
        component = self.component(task)
        resolver = Resolver(self.store, self.placeholders, old=self.backend.version < (2, 17))
        parameters, artifacts = resolver.inputs(task, component, dag, index=index)
        condition = task.get("triggerPolicy", {}).get("condition")
        met = not condition or holds(condition, parameters)
        outputs = component["dag"].get("outputs", {})
        count = None
        if met and index is None and "parameterIterator" in task:
            items = task["parameterIterator"]["items"]
            if "raw" in items:
                parameters[task["parameterIterator"]["itemInput"]] = json.loads(items["raw"])
            count = len(
                items_of(parameters[items.get("inputParameter", task["parameterIterator"]["itemInput"])])
            )
        made = self.store.create(
            run=self.id,
            kind="dag",
            task_name=key,
            parent=dag.id,
            state="RUNNING" if met else "CANCELED",
            inputs=parameters,
            input_artifacts=[(name, one.id) for name, found in artifacts.items() for one in found],
            iteration_index=index,
            iteration_count=count,
            total_dag_tasks=len(component["dag"]["tasks"]),
            parameter_producers=outputs.get("parameters"),
            artifact_producers=outputs.get("artifacts"),
        )
        self.result.executions[path] = made
        return made

    def inner(self, key: str, task: Spec, dag: Execution, path: str, policy: Spec | None) -> str:
        made = self.driven(key, task, dag, path)
        return SKIPPED if made.state == "CANCELED" else self.dag(self.component(task), made, path, policy)

    def loop(self, key: str, task: Spec, dag: Execution, path: str, policy: Spec | None) -> str:
        head = self.driven(key, task, dag, path)
        if head.state == "CANCELED":
            return SKIPPED
        phases = []
        for turn in range(head.iteration_count or 0):
            here = f"{path}({turn})"
            made = self.driven(key, task, head, here, turn)
            phases.append(self.dag(self.component(task), made, here, policy))
        return FAILED if FAILED in phases else SUCCEEDED

    # Importers (component/importer_launcher.go)

    def importer(self, task: Spec, importer: Spec, dag: Execution, path: str) -> str:
        made = self.store.create(
            run=self.id,
            kind="importer",
            task_name=task["taskInfo"]["name"],
            parent=dag.id,
            state="RUNNING",
            inputs={},
            input_artifacts=[],
        )
        self.result.executions[path] = made
        uri = self.imported(task, importer, dag)
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

    def imported(self, task: Spec, importer: Spec, dag: Execution) -> str:
        if "constant" in importer["artifactUri"]:
            if not importer["artifactUri"]["constant"]:
                raise BackendError("empty Artifact URI constant value")
            return str(importer["artifactUri"]["constant"])
        name = importer["artifactUri"]["runtimeParameter"]
        outer = task["inputs"]["parameters"][name].get("componentInputParameter", "")
        if outer not in dag.inputs:
            raise BackendError(
                f"error resolving artifact URI: parent DAG does not have input parameter {outer}"
            )
        if not dag.inputs[outer]:
            raise BackendError(f"empty artifact URI runtime value for parameter {name}")
        return str(dag.inputs[outer])

    # Containers (driver/container.go, component/launcher_v2.go)

    def container(self, key: str, task: Spec, dag: Execution, path: str, policy: Spec | None) -> str:
        component, container = self.component(task), self.executor(task)["container"]
        assert container["image"] not in NO_LAUNCHER
        resolver = Resolver(self.store, self.placeholders, old=self.backend.version < (2, 17))
        parameters, artifacts = resolver.inputs(task, component, dag)
        condition = task.get("triggerPolicy", {}).get("condition")
        met = not condition or holds(condition, parameters)
        cached = met and task.get("cachingOptions", {}).get("enableCache", False)
        made = self.store.create(
            run=self.id,
            kind="container",
            task_name=key,
            parent=dag.id,
            state="RUNNING" if met else "CANCELED",
            inputs=parameters,
            input_artifacts=[(name, one.id) for name, found in artifacts.items() for one in found],
            fingerprint=self.fingerprint(component, container, parameters, artifacts) if cached else "",
        )
        self.result.executions[path] = made
        if not met:
            return SKIPPED
        if (known := self.backend.cache.get((self.name, made.fingerprint))) and cached:
            made.outputs, made.output_artifacts = known.outputs, known.output_artifacts
            made.state = "CACHED"
            return SUCCEEDED

        def launch(attempt: int, deadline_s: float) -> str:
            return self.launched(key, task, made, artifacts, attempt, deadline_s)

        phase = self.tried(launch, policy)
        if phase == SUCCEEDED and cached:
            self.backend.cache[self.name, made.fingerprint] = made
        return phase

    def fingerprint(
        self, component: Spec, container: Spec, parameters: Spec, artifacts: Mapping[str, list[Artifact]]
    ) -> str:
        """What a cached task is found by (cacheutils/cache.go:173-229)."""
        kubernetes = next((one["platforms"]["kubernetes"] for one in self.platforms), {})
        config = kubernetes.get("deploymentSpec", {}).get("executors", {}).get(component["executorLabel"], {})
        content = [
            {name: [one.id for one in found] for name, found in artifacts.items()},
            dict(parameters),
            component.get("outputDefinitions", {}),
            [container["image"], *container.get("command", []), *container.get("args", [])],
            sorted(
                mount["pvcNameParameter"]["runtimeValue"]["constant"] for mount in config.get("pvcMount", [])
            ),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def tried(self, launch: Callable[[int, float], str], policy: Spec | None) -> str:
        """Attempts as Argo makes them (workflow/controller/operator.go:978-1150)."""
        backend, started_s, deadline_s, attempt = self.backend, self.backend.clock_s, float("inf"), 0
        while outcome := launch(attempt := attempt + 1, deadline_s):
            if policy is None or attempt > policy["maxRetryCount"] or outcome not in backend.retried:
                return FAILED
            deadline_s = started_s + seconds(policy.get("backoffMaxDuration", "0s"))
            factor = int(policy.get("backoffFactor", 0)) or 1
            backend.clock_s += seconds(policy.get("backoffDuration", "0s")) * factor ** (attempt - 1)
            if backend.clock_s >= deadline_s:
                return FAILED
        return SUCCEEDED

    def launched(
        self,
        key: str,
        task: Spec,
        made: Execution,
        artifacts: Mapping[str, list[Artifact]],
        attempt: int,
        deadline_s: float,
    ) -> str:
        """One pod: its launcher and program (component/launcher_v2.go:182-320); how it ended, "" for well."""
        component, container = self.component(task), self.executor(task)["container"]
        made.state = "RUNNING"
        call = Call(
            key, attempt, provisioned(component, made, artifacts, f"{ROOT}/{self.name}/{self.id}/{key}")
        )
        outcome = FAILURE
        try:
            call.executor_input = compiled(call.executor_input, component, container, self.backend.version)
            self.result.calls.append(call)
            name = re.sub(r"^comp-|-\d+$", "", task["componentRef"]["name"])
            returned = dict(self.backend.programs[name](call) or {})
            check_outputs(component, returned)
            outcome = ""
        except PodLostError:
            outcome = LOST
        except (TaskFailedError, BackendError) as error:
            self.result.errors[self.path(made)] = str(error)
        killed = self.backend.clock_s + call.took_s > deadline_s
        self.backend.clock_s = min(self.backend.clock_s + call.took_s, deadline_s)
        if outcome == LOST or killed:
            return outcome or FAILURE  # nobody is left to publish anything
        made.state = "FAILED" if outcome else "COMPLETE"
        if not outcome:
            made.outputs = returned
        for output, found in call.executor_input["outputs"]["artifacts"].items():
            one = found["artifacts"][0]
            stored = self.store.record(one["type"]["schemaTitle"], one["uri"], one.get("metadata", {}))
            made.output_artifacts.append((output, stored.id))
        self.store.update_state(self.store.executions[made.parent])
        return outcome

    def path(self, execution: Execution) -> str:
        return next(path for path, one in self.result.executions.items() if one is execution)

"""What a task's pod does: the launcher around a program (backend/src/v2/component/launcher_v2.go)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from strict_backend.resolve import KINDS, as_text
from strict_backend.store import Artifact, BackendError, Execution

if TYPE_CHECKING:
    from strict_backend.backend import Backend, Result

Spec = Mapping[str, Any]
FAILURE, LOST = "failure", "lost"
_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}")


class TaskFailedError(Exception):
    """A program ends with an error."""


class PodLostError(Exception):
    """A program's pod is deleted, as a spot node's is; nobody can report that."""


@dataclasses.dataclass
class Call:
    """What a program is started with.

    Attributes:
        task: The task's key.
        attempt: 1 for the first.
        executor_input: What the launcher hands it, as JSON gives it.
        took_s: Time that it takes; a program sets it.
    """

    task: str
    attempt: int
    executor_input: dict[str, Any]
    took_s: float = 60.0

    @property
    def parameters(self) -> dict[str, Any]:
        """Its input parameters, defaults included."""
        found: dict[str, Any] = self.executor_input["inputs"].get("parameterValues", {})
        return found

    def uri(self, name: str) -> str:
        """URI of an input or output artifact."""
        for side in ("inputs", "outputs"):
            if name in self.executor_input[side].get("artifacts", {}):
                return str(self.executor_input[side]["artifacts"][name]["artifacts"][0]["uri"])
        raise KeyError(name)


Program = Callable[[Call], Mapping[str, Any] | None]
"""What a component does: takes a call, returns its output parameters by name."""


@dataclasses.dataclass
class Launcher:
    """The pods of one task."""

    backend: Backend
    result: Result
    task: Spec
    component: Spec
    container: Spec
    execution: Execution
    artifacts: Mapping[str, list[Artifact]]
    path: str

    async def succeeds(self, root: str, policy: Spec | None) -> bool:
        """Attempts as Argo makes them (argo-workflows workflow/controller/operator.go:978-1150)."""
        clock = asyncio.get_running_loop().time
        started_s, deadline_s, attempt = clock(), float("inf"), 0
        while outcome := await self.once(
            f"{root}/{self.execution.task_name}", attempt := attempt + 1, deadline_s
        ):
            if policy is None or attempt > policy["maxRetryCount"] or outcome not in self.backend.retried:
                return False
            deadline_s = started_s + seconds(policy.get("backoffMaxDuration", "0s"))
            factor = int(policy.get("backoffFactor", 0)) or 1
            wait_s = seconds(policy.get("backoffDuration", "0s")) * factor ** (attempt - 1)
            if clock() + wait_s >= deadline_s:
                return False
            await asyncio.sleep(wait_s)
        return True

    async def once(self, root: str, attempt: int, deadline_s: float) -> str:
        """One pod (component/launcher_v2.go:182-320); how it ended, empty for well."""
        store, made = self.backend.store, self.execution
        made.state = "RUNNING"
        call = Call(made.task_name, attempt, provisioned(self.component, made, self.artifacts, root))
        outcome, returned = "", {}
        try:
            call.executor_input = compiled(
                call.executor_input, self.component, self.container, self.backend.version
            )
            self.result.calls.append(call)
            name = re.sub(r"^comp-|-\d+$", "", self.task["componentRef"]["name"])
            returned = dict(self.backend.programs[name](call) or {})
            check_outputs(self.component, returned)
        except PodLostError:
            outcome = LOST
        except (TaskFailedError, BackendError) as error:
            outcome = FAILURE
            self.result.errors[self.path] = str(error)
        left_s = deadline_s - asyncio.get_running_loop().time()
        await asyncio.sleep(min(call.took_s, left_s))
        if outcome == LOST or call.took_s > left_s:
            return outcome or FAILURE  # nobody is left who could publish anything
        made.state = "FAILED" if outcome else "COMPLETE"
        made.outputs = {} if outcome else returned
        for output, found in call.executor_input["outputs"]["artifacts"].items():
            one = found["artifacts"][0]
            stored = store.record(one["type"]["schemaTitle"], one["uri"], one.get("metadata", {}))
            made.output_artifacts.append((output, stored.id))
        store.update_state(store.executions[made.parent])
        return outcome


def provisioned(
    component: Spec, made: Execution, artifacts: Mapping[str, list[Artifact]], root: str
) -> dict[str, Any]:
    """The executor input that the driver writes (driver/driver.go:741-806)."""
    outputs = component.get("outputDefinitions", {})
    return {
        "inputs": {
            "parameterValues": dict(made.inputs),
            "artifacts": {
                name: {
                    "artifacts": [
                        {
                            "name": str(one.id),
                            "uri": one.uri,
                            "metadata": one.metadata,
                            "type": {"schemaTitle": one.type},
                        }
                        for one in found
                    ]
                }
                for name, found in artifacts.items()
            },
        },
        "outputs": {
            "parameters": {
                name: {"outputFile": f"/tmp/kfp/outputs/{name}"}  # noqa: S108 - the launcher's own
                for name in outputs.get("parameters", {})
            },
            "artifacts": {
                name: {
                    "artifacts": [
                        {
                            "name": name,
                            "uri": f"{root}/{made.id}/{name}",
                            "type": spec["artifactType"],
                            "metadata": {},
                        }
                    ]
                }
                for name, spec in outputs.get("artifacts", {}).items()
            },
            "outputFile": "/tmp/kfp_outputs/output_metadata.json",  # noqa: S108
        },
    }


def compiled(
    given: dict[str, Any], component: Spec, container: Spec, version: tuple[int, int]
) -> dict[str, Any]:
    """The executor input as the program reads it, placeholders replaced as they stand (1051-1173)."""
    command = [*container.get("command", []), *container.get("args", [])]
    if version >= (2, 17):  # the driver replaces them already (driver/util.go:165-288)
        for text in command:
            for name in _INPUT.findall(text) if isinstance(text, str) and "$.outputs" not in text else ():
                if name not in given["inputs"]["parameterValues"] and not text.strip().startswith(
                    '{"IfPresent":'
                ):
                    raise BackendError(f'parameter "{name}" not found in executor input')
    values = given["inputs"]["parameterValues"]
    for name, spec in component.get("inputDefinitions", {}).get("parameters", {}).items():
        if "defaultValue" in spec:
            values.setdefault(name, spec["defaultValue"])
    text = json.dumps(given, ensure_ascii=False)
    for name, value in values.items():
        text = text.replace(f"{{{{$.inputs.parameters['{name}']}}}}", as_text(value))
    for side in ("inputs", "outputs"):
        for name, found in given[side]["artifacts"].items():
            text = text.replace(f"{{{{$.{side}.artifacts['{name}'].uri}}}}", found["artifacts"][0]["uri"])
    try:
        read: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise BackendError(f"the program can't read its inputs: {error}") from None
    return read


def check_outputs(component: Spec, returned: dict[str, Any]) -> None:
    """Hold a program's output parameters to their types (484-514)."""
    specs = component.get("outputDefinitions", {}).get("parameters", {})
    assert returned.keys() <= specs.keys(), (
        f"outputs that the component doesn't have: {returned.keys() - specs.keys()}"
    )
    for name, spec in specs.items():
        if name not in returned:
            raise BackendError(
                f'failed to read output parameter name="{name}" type="{spec["parameterType"]}"'
            )
        kind = KINDS[type(returned[name])][0]
        wanted = spec["parameterType"]
        assert kind == wanted or (kind.startswith("NUMBER") and wanted.startswith("NUMBER")), (
            f"{name}: {kind}"
        )


def seconds(duration: str) -> float:
    """Seconds of a duration as protobuf writes it."""
    return float(duration.removesuffix("s"))

"""Rules about values: placeholders that are replaced otherwise than one thinks, and missing values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from calib_pipelines.packages.importers import known_values
from calib_pipelines.packages.rules import BACKENDS, Asked, Finding, Rule, lines, since
from calib_pipelines.packages.spec import ROOT, Dag, Task

KNOWN = {
    "pipeline_job_name": BACKENDS,
    "pipeline_job_resource_name": BACKENDS,
    "pipeline_job_uuid": BACKENDS,
    "pipeline_task_name": BACKENDS,
    "pipeline_task_uuid": BACKENDS,
    "pipeline_job_create_time_utc": since("2.17"),  # empty in 2.16, whose driver knows them and has no value
    "pipeline_job_schedule_time_utc": since("2.17"),
    "workspace_path": since("2.15"),
}
"""Placeholders that the backend fills in, and since when."""

_OWN = re.compile(r"\{\{\$\.((?:pipeline_|workspace_)\w+)\}\}")
_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}")
_NEEDS_ESCAPE = re.compile(r'["\\\x00-\x1f]')
_RESOLVE = lines("v2/driver/resolve.go:424-455")


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _constants(asked: Asked) -> Iterator[tuple[Task, str, Any]]:
    """Constant inputs of tasks: the task, the input's place, and the value."""
    for task in asked.graph.tasks():
        for name, source in task.parameters.items():
            if "constant" in source.get("runtimeValue", {}):
                yield task, f"{task.place}.inputs.parameters.{name}", source["runtimeValue"]["constant"]


def _unknown(asked: Asked) -> Iterator[Finding]:
    texts = [(place, text) for _, place, value in _constants(asked) for text in _texts(value)]
    faces = {f"components.{key}": component for key, component in asked.graph.components.items()}
    for key, component in {ROOT: asked.graph.pipeline.get("root", {}), **faces}.items():
        for name, spec in component.get("inputDefinitions", {}).get("parameters", {}).items():
            place = f"{key}.inputDefinitions.parameters.{name}.defaultValue"
            texts += [(place, text) for text in _texts(spec.get("defaultValue")) if _OWN.search(text)]
    for place, text in texts:
        for name in _OWN.findall(text):
            is_default = place.endswith(".defaultValue")
            missing = [one for one in BACKENDS if is_default or one not in KNOWN.get(name, ())]
            if missing:
                yield Finding(place=place, what=f"has {{{{$.{name}}}}}", versions=tuple(missing))


def _embedded(asked: Asked) -> Iterator[Finding]:
    for _, place, value in _constants(asked):
        for text in _texts(value):
            for found in _OWN.finditer(text):
                if found[1] in KNOWN and found[1] != "workspace_path" and value != found[0]:
                    yield Finding(place=place, what=f"has {found[0]} within more")
    for label, executor in asked.graph.executors.items():
        for text in _texts(executor.get("container", {}).get("args", [])):
            if inside := _OWN.search(text):
                yield Finding(
                    place=f"deploymentSpec.executors.{label}.container.args", what=f"has {inside[0]}"
                )


def _type(task: Task, name: str) -> str:
    """Type of a task's input parameter, by where it comes from."""
    source = task.parameters.get(name, {})
    if inner := source.get("componentInputParameter"):
        return str(task.dag.inputs.get(inner, {}).get("parameterType", ""))
    made = source.get("taskOutputParameter", {})
    if made.get("producerTask") not in task.dag.tasks:
        return ""
    outputs = task.dag.tasks[made["producerTask"]].component.get("outputDefinitions", {})
    return str(outputs.get("parameters", {}).get(made["outputParameterKey"], {}).get("parameterType", ""))


def _unescaped(asked: Asked) -> Iterator[Finding]:
    for task, place, value in _constants(asked):
        for text in _texts(value):
            for found in _INPUT.finditer(text):
                if why := _breaks(asked, task, found[1], text):
                    yield Finding(place=place, what=f"has {found[0]} within more, {why}")


def _breaks(asked: Asked, task: Task, name: str, text: str) -> str:
    """Why a placeholder in a text breaks the input that the text stands in; empty if it need not."""
    kind = _type(task, name)
    if kind in ("LIST", "STRUCT"):
        return f"which is of type {kind}"
    if kind == "STRING" and text.lstrip()[:1] in ("{", "["):
        return "in a text that is JSON itself"
    for value in known_values(task.dag, task.parameters.get(name, {}), asked):
        if isinstance(value, str) and _NEEDS_ESCAPE.search(value):
            return "whose value has a quote, a backslash or a line break"
    return ""


def _absent(asked: Asked) -> Iterator[Finding]:
    for task in asked.graph.tasks():
        container = task.container or {}
        texts = [*container.get("command", []), *container.get("args", [])]
        for text in texts:
            if not isinstance(text, str) or "$.outputs" in text or text.strip().startswith('{"IfPresent":'):
                continue
            for name in _INPUT.findall(text):
                if name not in task.parameters:
                    yield Finding(
                        place=f"{task.place}.inputs",
                        what=f"gives no {name!r}, which the container's command has",
                    )


def _may_be_null(dag: Dag, name: str, asked: Asked) -> bool:
    """Whether an input parameter of a DAG can come to have no value."""
    spec = dag.inputs.get(name, {})
    missing = bool(spec.get("isOptional")) and "defaultValue" not in spec
    if dag.name == ROOT:
        return missing and name not in (asked.values or {})
    for user in dag.users:
        source = user.parameters.get(name)
        if source is None:
            if missing:
                return True
        elif _may_be_null(user.dag, source.get("componentInputParameter", ""), asked):
            return True
    return False


def _nulls(asked: Asked) -> Iterator[Finding]:
    if asked.values is None:
        return
    for task in asked.graph.tasks():
        taken = task.component.get("inputDefinitions", {}).get("parameters", {})
        for name, source in task.parameters.items():
            outer = source.get("componentInputParameter")
            needed = name in taken and (not taken[name].get("isOptional") or _is_used(task, name))
            if outer is None or task.dag.conditional or not needed:
                continue
            if _may_be_null(task.dag, outer, asked):
                yield Finding(
                    place=f"{task.place}.inputs.parameters.{name}", what=f"gets {outer}, which has no value"
                )


def _is_used(task: Task, name: str) -> bool:
    """Whether a task is an inner pipeline whose tasks take its input, to which no default is applied."""
    inner = task.inner
    return inner is not None and any(
        source.get("componentInputParameter") == name
        for one in inner.tasks.values()
        for source in one.parameters.values()
    )


RULES = (
    Rule(
        id="placeholder-unknown",
        text="placeholders that the backend doesn't know, and all in default values, stay as they are",
        remedy="leave it out, give the value as a parameter, or compile the package for the platform that it "
        "is to run on",
        source=_RESOLVE,
        find=_unknown,
    ),
    Rule(
        id="placeholder-embedded",
        text="a placeholder of the run or the task is filled in only if it is an input's whole value",
        remedy="pass it as an input of its own, and join the texts in the task",
        source=_RESOLVE,
        find=_embedded,
    ),
    Rule(
        id="placeholder-json",
        text="a value is put into the JSON of a task's inputs as it stands: a quote, a backslash or a line "
        "break in it breaks all of them",
        remedy="pass it as an input of its own, and make the text in the task",
        source=lines("v2/component/launcher_v2.go:1051-1173"),
        find=_unescaped,
    ),
    Rule(
        id="placeholder-absent",
        text="a command may only name inputs that the task gives, even if they have defaults",
        remedy="give the input a value, or write dsl.IfPresentPlaceholder around it",
        source=lines("v2/driver/util.go:165-176, 263-288", "v2/driver/driver.go:309-319"),
        find=_absent,
        versions=since("2.17"),
    ),
    Rule(
        id="input-null",
        text="a parameter without a value can't go to an input that needs one, nor to an inner pipeline's, "
        "whose default isn't applied then",
        remedy="give the parameter a value, or a default",
        source=lines("v2/driver/resolve.go:336-346, 399-403"),
        find=_nulls,
    ),
)

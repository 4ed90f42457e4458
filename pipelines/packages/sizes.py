"""Rules about sizes, and about what the compiler for Argo takes for equal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from calib_pipelines.packages.rules import ARGO, Asked, Finding, Rule, lines

ARGUMENT_BYTES = 128 * 1024
"""Longest argument of a program on Linux (MAX_ARG_STRLEN)."""
WORKFLOW_BYTES = 1024 * 1024
"""Largest Argo workflow."""
TASK_BYTES, BASE_BYTES = 1_000, 10_000
"""What a workflow has for each task, and in all, beside the package's content; about as KFP 2.17's has."""

_COMPILER = "v2/compiler/argocompiler"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _bytes(value: Any) -> int:
    return len(_json(value).encode())


def _arguments(asked: Asked) -> Iterator[Finding]:
    graph = asked.graph
    parts: list[tuple[str, Any]] = [("root", graph.pipeline.get("root", {}))]
    parts += [(f"components.{key}", component) for key, component in graph.components.items()]
    parts += [
        (f"deploymentSpec.executors.{label}", next(iter(executor.values()), {}))
        for label, executor in graph.executors.items()
    ]
    parts += [(task.place, task.spec) for task in graph.tasks()]
    for place, part in parts:
        if (size := _bytes(part)) >= ARGUMENT_BYTES:
            yield Finding(place=place, what=f"has {size} bytes; {ARGUMENT_BYTES - 1} go into an argument")


def workflow_bytes(asked: Asked) -> int:
    """About how many bytes the workflow has that the backend makes of a package, before it runs."""
    graph = asked.graph
    once = {_json(component) for component in [graph.pipeline.get("root", {}), *graph.components.values()]}
    once |= {_json(executor) for executor in graph.executors.values()}
    executors = graph.kubernetes.get("deploymentSpec", {}).get("executors", {})
    texts = [*once, *map(_json, executors.values())]
    for task in graph.tasks():
        texts += [_json(task.spec)] * (2 if "parameterIterator" in task.spec else 1)
    tasks = sum(1 for _ in graph.tasks())
    return sum(_bytes(text) for text in texts) + TASK_BYTES * tasks + BASE_BYTES  # JSON within JSON


def _workflow(asked: Asked) -> Iterator[Finding]:
    if (size := workflow_bytes(asked)) > WORKFLOW_BYTES:
        yield Finding(place="the package", what=f"makes a workflow of about {size} bytes")


def _plain(value: Any) -> Any:
    """A component without its descriptions, which nothing depends on."""
    if isinstance(value, dict):
        kept = {key: _plain(inner) for key, inner in value.items()}
        return {k: v for k, v in kept.items() if k != "description" or not isinstance(v, str)}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _shared(asked: Asked) -> Iterator[Finding]:
    first: dict[str, tuple[str, str]] = {}
    for key, component in asked.graph.components.items():
        container = asked.graph.executors.get(component.get("executorLabel", ""), {}).get("container")
        if container is None:
            continue
        face = _json(_plain({**component, "executorLabel": ""}))
        other, known = first.setdefault(_json(container), (key, face))
        if face != known:
            yield Finding(place=f"components.{key}", what=f"has the container of {other}, and other inputs")


RULES = (
    Rule(
        id="size-argument",
        text="components, containers and tasks are handed on as arguments, which Linux limits to 128 KiB",
        remedy="put the component's code into the image, or shorten its texts",
        source=lines(f"{_COMPILER}/container.go:179-230", f"{_COMPILER}/dag.go:588-620")
        + f"; {ARGO} cmd/argoexec/commands/emissary.go:84-100",
        find=_arguments,
    ),
    Rule(
        id="size-workflow",
        text="a workflow larger than 1 MiB can't be stored",
        remedy="put the components' code into the image, or split the pipeline",
        source=f"{ARGO} workflow/packer/packer.go:16-23 and 100-118",
        find=_workflow,
    ),
    Rule(
        id="component-shared",
        text="components with one container share the first one's inputs and defaults",
        remedy="give them containers that differ, for instance in a variable of their environment",
        source=lines(f"{_COMPILER}/argo.go:354-381, 437-480"),
        find=_shared,
    ),
)

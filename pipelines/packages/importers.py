"""Rules about importers, which Kubeflow's backend runs without a driver of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from calib_pipelines.packages.rules import Asked, Finding, Rule, lines
from calib_pipelines.packages.spec import ROOT, Dag, Task

_LAUNCHER = "v2/component/importer_launcher.go"
SCHEMES = ("gs", "s3", "minio", "mem")
_SCHEME = re.compile(r"([a-z][a-z0-9]+):///?[^/?]+")


def _importers(asked: Asked) -> Iterator[tuple[Task, Any]]:
    for task in asked.graph.tasks():
        if task.importer is not None:
            yield task, task.importer


def _source(task: Task, importer: Any) -> Any:
    """Where the importer's URI comes from: a constant's value, or the source of an input parameter."""
    uri = importer.get("artifactUri", {})
    if "constant" in uri:
        return {"runtimeValue": uri}
    return task.parameters.get(uri.get("runtimeParameter", ""), {})


def _not_inputs(asked: Asked) -> Iterator[Finding]:
    for task, importer in _importers(asked):
        source = _source(task, importer)
        if "runtimeValue" in source and "constant" in importer.get("artifactUri", {}):
            continue
        if "componentInputParameter" not in source:
            made_by = source.get("taskOutputParameter", {}).get("producerTask")
            what = f"is an output of task {made_by}" if made_by else "is set in the task"
            yield Finding(place=task.place, what=f"the URI {what}")


def _waiting(asked: Asked) -> Iterator[Finding]:
    for task, _ in _importers(asked):
        made = {one.get("taskOutputParameter", {}).get("producerTask") for one in task.parameters.values()}
        if explicit := sorted(set(task.spec.get("dependentTasks", [])) - made):
            yield Finding(place=task.place, what=f"is to wait for {', '.join(explicit)}")


def _metadata(asked: Asked) -> Iterator[Finding]:
    for task, importer in _importers(asked):
        for key, value in importer.get("metadata", {}).items():
            if "{{$" in f"{key}{value}":
                yield Finding(place=task.place, what=f"its metadata {key!r} is {value!r}")


def _renamed(asked: Asked) -> Iterator[Finding]:
    for task, _ in _importers(asked):
        name = task.spec.get("taskInfo", {}).get("name", "")
        if name != task.key and task.is_used:
            yield Finding(place=task.place, what=f"has the display name {name!r}")


def _twins(asked: Asked) -> Iterator[Finding]:
    for dag in asked.graph.dags():
        names = {key: key for key, task in dag.tasks.items() if task.importer is None}
        for key, task in dag.tasks.items():
            if task.importer is None:
                continue
            name = task.spec.get("taskInfo", {}).get("name", "")
            if name in names:
                yield Finding(place=task.place, what=f"is called {name!r}, as {names[name]} is")
            names[name] = key


def known_values(dag: Dag, source: Any, asked: Asked) -> Iterator[Any]:
    """Values that a parameter can have, as far as they stand in the package or in the run's parameters."""
    if "runtimeValue" in source:
        yield source["runtimeValue"].get("constant")
    name = source.get("componentInputParameter")
    if name is None:
        return
    if dag.name == ROOT:
        given = asked.values or {}
        yield given[name] if name in given else dag.inputs.get(name, {}).get("defaultValue")
        return
    for user in dag.users:
        default = {"runtimeValue": {"constant": dag.inputs.get(name, {}).get("defaultValue")}}
        yield from known_values(user.dag, user.parameters.get(name, default), asked)


def _schemes(asked: Asked) -> Iterator[Finding]:
    for task, importer in _importers(asked):
        is_model = importer.get("typeSchema", {}).get("schemaTitle") == "system.Model"
        allowed = (*SCHEMES, "oci") if is_model else SCHEMES
        for uri in known_values(task.dag, _source(task, importer), asked):
            if uri in (None, ""):
                if asked.values is not None and not task.dag.conditional:
                    yield Finding(place=task.place, what="its URI is empty")
                continue
            found = _SCHEME.match(str(uri))
            if found is None or found[1] not in allowed:
                yield Finding(place=task.place, what=f"its URI is {uri!r}")


RULES = (
    Rule(
        id="importer-input",
        text="an importer's URI is a constant, or an input parameter of the pipeline that it stands in",
        remedy="give the URI as a string to the tasks that need it, or put importer and consumers into an "
        "inner pipeline that has the URI as a parameter",
        source=lines(f"{_LAUNCHER}:207-236"),
        find=_not_inputs,
    ),
    Rule(
        id="importer-waits",
        text="an importer starts immediately; the tasks that it is to wait for are ignored",
        remedy="put importer and consumers into an inner pipeline that waits",
        source=lines("v2/compiler/argocompiler/dag.go:337-347"),
        find=_waiting,
    ),
    Rule(
        id="importer-name",
        text="an importer is stored under its display name and looked for under its own",
        remedy="leave set_display_name off importers",
        source=lines(f"{_LAUNCHER}:135-142", "v2/driver/resolve.go:710-733"),
        find=_renamed,
    ),
    Rule(
        id="importer-twin",
        text="two tasks under one name keep all tasks of their pipeline from being found",
        remedy="leave set_display_name off importers",
        source=lines(f"{_LAUNCHER}:135-142", "v2/metadata/client.go:1051-1064"),
        find=_twins,
    ),
    Rule(
        id="importer-metadata",
        text="an importer's metadata is stored as it stands, placeholders included",
        remedy="give an importer constant metadata only",
        source=lines(f"{_LAUNCHER}:252-260"),
        find=_metadata,
    ),
    Rule(
        id="importer-scheme",
        text="an importer takes gs://, s3://, minio:// and mem:// URIs, and oci:// ones of models",
        remedy="give hub ids, folders and other URIs as strings to the tasks that need them",
        source=lines(f"{_LAUNCHER}:262-280", "v2/objectstore/config.go:118-152"),
        find=_schemes,
    ),
)

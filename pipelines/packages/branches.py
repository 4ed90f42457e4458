"""Rules about DAGs: merges of branches, loops, exit tasks, and what the backend needs to see them end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from calib_pipelines.packages.rules import KFP_OLD, KFP_OLDER, Asked, Finding, Rule, before, lines
from calib_pipelines.packages.spec import NO_LAUNCHER, Dag, Node, Task

_STATES = ("v2/metadata/client.go:800-878", "v2/component/launcher_v2.go:220-230")
_DAG = "v2/compiler/argocompiler/dag.go"


def _merged(dag: Dag) -> Iterator[tuple[str, list[str]]]:
    """Outputs of a DAG that come from one of several tasks: place, and keys of these tasks."""
    for name, output in dag.outputs("parameters").items():
        if selectors := output.get("valueFromOneof", {}).get("parameterSelectors"):
            yield f"{dag.place}.outputs.parameters.{name}", [one["producerSubtask"] for one in selectors]
    for name, output in dag.outputs("artifacts").items():
        if len(selectors := output.get("artifactSelectors", [])) > 1:
            yield f"{dag.place}.outputs.artifacts.{name}", [one["producerSubtask"] for one in selectors]


def branches(asked: Asked) -> Iterator[tuple[Task, Dag]]:
    """Branches that a merge waits for: the task of each, and its DAG."""
    seen = set()
    for dag in asked.graph.dags():
        for _, keys in _merged(dag):
            for key in keys:
                inner = dag.tasks[key].inner if key in dag.tasks else None
                if inner is not None and (dag.name, key) not in seen:
                    seen.add((dag.name, key))
                    yield dag.tasks[key], inner


def _within(dag: Dag) -> Iterator[Dag]:
    """The DAG and those inside it."""
    yield dag
    for task in dag.tasks.values():
        if task.inner is not None:
            yield from _within(task.inner)


def _closes(dag: Dag, task: Task) -> bool:
    """Whether `task` has a launcher in every run, and starts after all others of the DAG have ended."""
    if task.container is None or task.cached or task.container.get("image") in NO_LAUNCHER:
        return False
    return dag.before(task) >= dag.tasks.keys() - {task.key}


def _unclosed(asked: Asked) -> Iterator[Finding]:
    seen = set()
    for _, branch in branches(asked):
        for dag in _within(branch):
            if dag.name not in seen and not any(_closes(dag, task) for task in dag.tasks.values()):
                seen.add(dag.name)
                yield Finding(place=dag.place, what="no task without caching runs after all its others")


def _loops(asked: Asked) -> Iterator[Finding]:
    for _, branch in branches(asked):
        for dag in _within(branch):
            for task in dag.tasks.values():
                if "parameterIterator" in task.spec:
                    yield Finding(place=task.place, what="is a loop in a branch that is merged later")


def _loop_names(asked: Asked) -> Iterator[Finding]:
    for task in asked.graph.tasks():
        shown = task.spec.get("taskInfo", {}).get("name")
        if "parameterIterator" in task.spec and shown != task.key and task.is_used:
            yield Finding(place=task.place, what=f"has the name {shown!r} of its own")


def _artifacts(asked: Asked) -> Iterator[Finding]:
    for dag in asked.graph.dags():
        for place, _ in _merged(dag):
            if ".outputs.artifacts." in place:
                yield Finding(place=place, what="is an artifact of one of several branches")


def _doubled(asked: Asked) -> Iterator[Finding]:
    for task in asked.graph.tasks():
        for (one, source), (other, its_source) in itertools.combinations(task.artifacts.items(), 2):
            if how := _same(task.dag, source, its_source):
                yield Finding(place=task.place, what=f"gets {how} as {one} and as {other}")


def _same(dag: Dag, one: Node, other: Node) -> str:
    """Why two sources of artifacts in a DAG are the same one; empty if they aren't."""
    if one == other:
        return "one artifact"
    names = [source.get("componentInputArtifact") for source in (one, other)]
    if all(names):
        pairs = [[user.artifacts.get(str(name), {}) for name in names] for user in dag.users]
        return next(
            (how for user, pair in zip(dag.users, pairs, strict=True) if (how := _same(user.dag, *pair))), ""
        )
    made = [source.get("taskOutputArtifact", {}) for source in (one, other)]
    tasks = [dag.tasks.get(source.get("producerTask", "")) for source in made]
    if None in tasks or made[0].get("outputArtifactKey") != made[1].get("outputArtifactKey"):
        return ""
    equal = all(task is not None and task.cached and task.container for task in tasks) and _calls_equal(
        *tasks
    )
    return (
        f"the cached output of equal tasks {made[0]['producerTask']} and {made[1]['producerTask']}"
        if equal
        else ""
    )


def _calls_equal(one: Task | None, other: Task | None) -> bool:
    """Whether two tasks run one container on the same inputs, and so share what the cache has of them."""
    if one is None or other is None:
        return False
    return one.container == other.container and one.spec.get("inputs") == other.spec.get("inputs")


def _lists(asked: Asked) -> Iterator[Finding]:
    for task in asked.graph.tasks():
        if task.inner is None or "artifactIterator" in task.spec:
            continue
        defined = task.component.get("inputDefinitions", {}).get("artifacts", {})
        for name in task.artifacts:
            if defined.get(name, {}).get("isArtifactList"):
                yield Finding(place=task.place, what=f"gets a list of artifacts as {name}")


def _artifact_loops(asked: Asked) -> Iterator[Finding]:
    for task in asked.graph.tasks():
        if "artifactIterator" in task.spec:
            yield Finding(place=task.place, what="loops over artifacts")


def _exits(asked: Asked) -> Iterator[Finding]:
    for dag in asked.graph.dags():
        ended_by: dict[str, str] = {}
        for key, task in dag.tasks.items():
            if not task.ends:
                continue
            awaited = sorted(task.producers)
            if len(awaited) != 1:
                yield Finding(place=task.place, what=f"runs after {len(awaited)} tasks, however they ended")
            for other in dag.tasks.values():
                if key in other.producers:
                    yield Finding(place=other.place, what=f"waits for the exit task {key}")
            for one in awaited:
                if ended_by.setdefault(one, key) != key:
                    yield Finding(place=task.place, what=f"is a second exit task, after {ended_by[one]}")


RULES = (
    Rule(
        id="branch-cached",
        text="a merge (dsl.OneOf) takes a branch only if a container ran in it, and in each DAG inside "
        "it, after all else there; tasks from the cache run none, so a second run would fail",
        remedy="end the branch, and each DAG in it, with a task that depends on all others there and has "
        "set_caching_options(False)",
        source=lines("v2/driver/resolve.go:1061-1090, 1110-1146", *_STATES),
        find=_unclosed,
    ),
    Rule(
        id="branch-loop",
        text="a loop never counts as ended, and so keeps its branch from being merged",
        remedy="put the loop before or after the branches, or run on KFP 2.17",
        source=lines("v2/metadata/client.go:755-794", at=KFP_OLD),
        find=_loops,
        versions=before("2.17"),
    ),
    Rule(
        id="loop-name",
        text="a loop is stored under its display name and looked for under its key",
        remedy="leave name off dsl.ParallelFor if its outputs are gathered, or run on KFP 2.16",
        source=lines(f"{_DAG}:411-419", "v2/driver/dag.go:95-103", at=KFP_OLDER),
        find=_loop_names,
        versions=before("2.16"),
    ),
    Rule(
        id="merged-artifact",
        text="an artifact of one of several branches is always looked for in the last of them",
        remedy="merge the artifacts' URIs as strings, or run on KFP 2.17",
        source=lines("v2/driver/resolve.go:1037-1041", at=KFP_OLD),
        find=_artifacts,
        versions=before("2.17"),
    ),
    Rule(
        id="doubled-artifact",
        text="the metadata store refuses a task that gets one artifact as two of its inputs; equal tasks "
        "give one artifact, from the cache",
        remedy="give it once, or its URI as a string; give equal tasks different inputs, or keep one from "
        "caching",
        source=lines("v2/metadata/client.go:740-752", "v2/driver/container.go:217-240")
        + "; google/ml-metadata 1.14.0, UNIQUE (artifact_id, execution_id, type) of its table Event",
        find=_doubled,
    ),
    Rule(
        id="artifact-list",
        text="of a list of artifacts that is given to an inner pipeline, a condition or a loop, one is left",
        remedy="use dsl.Collected in a task that stands beside the loop, not in a DAG of its own",
        source=lines("v2/metadata/client.go:1177-1190"),
        find=_lists,
    ),
    Rule(
        id="artifact-loop",
        text="loops over artifacts don't exist",
        remedy="loop over a list of strings, such as the artifacts' URIs",
        source=lines(f"{_DAG}:66-71"),
        find=_artifact_loops,
    ),
    Rule(
        id="exit-task",
        text="a task that runs however others ended becomes the one exit hook of one task, and none can wait "
        "for it",
        remedy="put what it ends under one dsl.ExitHandler, let nothing depend on it, and leave "
        "ignore_upstream_failure off other tasks",
        source=lines(f"{_DAG}:62-110"),
        find=_exits,
    ),
)

"""Rules about fields: what a release of the backend can read of a package."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from calib_pipelines.packages.rules import BACKENDS, Asked, Finding, Rule, before, lines, since

SCHEMA = "2.1.0"

PIPELINE_FIELDS = {
    "components.*.taskConfigPassthroughs": since("2.15"),
    "components.*.inputDefinitions.parameters.*.parameterType=TASK_CONFIG": since("2.15"),
    "components.*.inputDefinitions.parameters.*.literals": since("2.16"),
    "root.inputDefinitions.parameters.*.literals": since("2.16"),
    "deploymentSpec.executors.*.importer.downloadToWorkspace": since("2.15"),
}
PLATFORM_FIELDS = {
    "platforms.kubernetes.pipelineConfig.workspace": since("2.15"),
    "platforms.kubernetes.pipelineConfig.resourceTtlOnCompletion": since("2.17"),
    "platforms.kubernetes.pipelineConfig.resourceTtlOnSuccess": since("2.17"),
    "platforms.kubernetes.pipelineConfig.resourceTtlOnFailure": since("2.17"),
    "platforms.kubernetes.pipelineConfig.activeDeadlineSeconds": since("2.17"),
    "platforms.kubernetes.pipelineConfig.resourceTtl": before("2.17"),
    "platforms.kubernetes.pipelineConfig.semaphoreKey": before("2.15"),
    "platforms.kubernetes.pipelineConfig.mutexName": before("2.15"),
}
KUBERNETES_FIELDS = {
    "secretAsEnv.*.optional": since("2.15"),
    "configMapAsEnv.*.optional": since("2.15"),
    "pvcMount.*.subPath": since("2.16"),
    "securityContext": since("2.16"),
}
"""Fields that not all releases of `BACKENDS` have, and those that have them.

From the differences of api/v2alpha1/pipeline_spec.proto and
kubernetes_platform/proto/kubernetes_executor_config.proto between the tags.
"""


def _paths(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value by its path, items of lists by their number."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        here = f"{path}.{key}" if path else str(key)
        yield here, inner
        yield from _paths(inner, here)


def _newer(document: Any, fields: Mapping[str, tuple[str, ...]], place: str = "") -> Iterator[Finding]:
    """Fields of a document that some releases don't have."""
    for path, value in _paths(document):
        for pattern, versions in fields.items():
            name, _, wanted = pattern.partition("=")
            if path.count(".") != name.count(".") or not fnmatch.fnmatchcase(path, name):
                continue
            if not wanted or value == wanted:
                missing = tuple(one for one in BACKENDS if one not in versions)
                yield Finding(place=place + path, what=f"is {value!r}", versions=missing)


def _strict(document: Any, message: Any) -> str:
    """What keeps a document from being read strictly as a message; empty if nothing does."""
    try:
        json_format.ParseDict(document, message)
    except json_format.ParseError as error:
        return " ".join(str(error).split())
    return ""


def _pipeline(asked: Asked) -> Iterator[Finding]:
    pipeline = asked.graph.pipeline
    if wrong := _strict(pipeline, pipeline_spec_pb2.PipelineSpec()):
        yield Finding(place="the pipeline", what=wrong)
    if pipeline.get("schemaVersion") != SCHEMA:
        yield Finding(place="schemaVersion", what=f"is {pipeline.get('schemaVersion')!r}, not {SCHEMA!r}")
    yield from _newer(pipeline, PIPELINE_FIELDS)


def _platform(asked: Asked) -> Iterator[Finding]:
    for platform in asked.graph.platforms:
        known = {path.rpartition(".")[2] for path in PLATFORM_FIELDS}
        kubernetes = dict(platform["platforms"].get("kubernetes", {}))
        config = kubernetes.pop("pipelineConfig", {})
        kubernetes["pipelineConfig"] = {key: value for key, value in config.items() if key not in known}
        rest = {**platform, "platforms": {**platform["platforms"], "kubernetes": kubernetes}}
        if wrong := _strict(rest, pipeline_spec_pb2.PlatformSpec()):
            yield Finding(place="platforms", what=wrong)
        yield from _newer(platform, PLATFORM_FIELDS)


def _kubernetes(asked: Asked) -> Iterator[Finding]:
    executors = asked.graph.kubernetes.get("deploymentSpec", {}).get("executors", {})
    for label, config in executors.items():
        place = f"platforms.kubernetes.deploymentSpec.executors.{label}"
        if wrong := _strict_kubernetes(config):
            yield Finding(place=place, what=wrong)
        yield from _newer(config, KUBERNETES_FIELDS, f"{place}.")


def _strict_kubernetes(config: Any) -> str:
    try:
        from kfp.kubernetes import kubernetes_executor_config_pb2 as messages  # noqa: PLC0415 - an extra
    except ImportError:
        return ""
    return _strict(config, messages.KubernetesExecutorConfig())


def _foreign(asked: Asked) -> Iterator[Finding]:
    for platform in asked.graph.platforms:
        yield Finding(place="platforms", what=f"has settings of {', '.join(platform['platforms'])}")


def _executors(asked: Asked) -> Iterator[Finding]:
    for label, executor in asked.graph.executors.items():
        for kind in executor.keys() - {"container", "importer"}:
            yield Finding(place=f"deploymentSpec.executors.{label}", what=f"is a {kind}")


RULES = (
    Rule(
        id="pipeline-field",
        text="a pipeline with a field that the backend doesn't know is no pipeline to it: "
        "'unknown template format'",
        remedy="leave it out, or run on a release that knows it",
        source=lines("apiserver/template/v2_template.go:216-232", "apiserver/template/template.go:107-115"),
        find=_pipeline,
    ),
    Rule(
        id="platform-field",
        text="platform settings with a field that the backend doesn't know are ignored as a whole: no "
        "volumes, no secrets, no node selectors",
        remedy="leave it out, or run on a release that knows it",
        source=lines("apiserver/template/v2_template.go:244-262, 428-440"),
        find=_platform,
    ),
    Rule(
        id="kubernetes-field",
        text="a run whose Kubernetes settings have a field that the backend doesn't know isn't started",
        remedy="leave it out, or run on a release that knows it",
        source=lines("v2/compiler/argocompiler/container.go:323-330"),
        find=_kubernetes,
    ),
    Rule(
        id="executor-kind",
        text="tasks are containers and importers; custom jobs and resolvers are Google Cloud's",
        remedy="compile the pipeline for Kubeflow",
        source=lines("v2/compiler/argocompiler/dag.go:348-353"),
        find=_executors,
    ),
)
VERTEX_RULES = (
    Rule(
        id="kubernetes-settings",
        text="Vertex AI Pipelines has no Kubernetes to give settings to",
        remedy="compile the pipeline with --target vertex",
        source="https://cloud.google.com/vertex-ai/docs/pipelines/build-pipeline",
        find=_foreign,
    ),
)

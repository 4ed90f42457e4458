"""What Kubeflow Pipelines' API server checks and shows (kubeflow/pipelines 2.17.0, backend/src)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "NUMBER_DOUBLE": ((int, float), "double or integer, but the parameter value is not of number value type"),
    "NUMBER_INTEGER": (
        (int, float),
        "double or integer, but the parameter value is not of number value type",
    ),
    "STRING": (str, "string, but the input parameter is not of string value type"),
    "BOOLEAN": (bool, "bool, but the input parameter is not of bool value type"),
    "LIST": (list, "list, but the input parameter is not of list value type"),
    "STRUCT": (dict, "struct, but the input parameter is not of struct value type"),
}


class InvalidInputError(Exception):
    """What the server refuses with code 3, InvalidArgument."""


def parsed_package(text: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The pipeline and the Kubernetes settings of a package, read strictly.

    A document that isn't read strictly isn't refused: it is taken for none
    (apiserver/template/template.go:69-115, apiserver/template/v2_template.go:190-268 and 428-440).
    """
    pipelines, platforms = [], []
    try:
        documents = [one for one in yaml.safe_load_all(text) if one is not None]
    except yaml.YAMLError as error:
        raise InvalidInputError(f"unable to decode yaml document: {error}") from None
    for document in documents:
        spec = _strictly(document, pipeline_spec_pb2.PipelineSpec())
        platform = _strictly(document, pipeline_spec_pb2.PlatformSpec())
        if spec is not None and spec.pipeline_info.name and spec.HasField("root"):
            if spec.schema_version != "2.1.0":
                raise InvalidInputError(
                    "KFP only supports schema version 2.1.0, but the pipeline spec has version "
                    f"{spec.schema_version}"
                )
            pipelines.append(document)
        elif platform is not None and "kubernetes" in platform.platforms:
            platforms.append(document)
    if not pipelines:
        raise InvalidInputError("unknown template format")
    for found, kind in ((pipelines, "pipeline"), (platforms, "platform")):
        if len(found) > 1:
            raise InvalidInputError(f"multiple {kind} specs provided")
    return pipelines[0], platforms[0] if platforms else None


def _strictly(document: Any, message: Any) -> Any:
    try:
        return json_format.Parse(json.dumps(document), message)
    except (json_format.ParseError, TypeError):
        return None


def check_inputs(pipeline: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Hold a run's parameters to its pipeline (apiserver/template/v2_template.go:442-532)."""
    specs = pipeline["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, spec in specs.items():
        if name not in given:
            if not spec.get("isOptional") and "defaultValue" not in spec:
                raise InvalidInputError(
                    f"parameter {name} is not optional, yet has neither default value nor user provided value"
                )
            continue
        wanted, text = _TYPES[spec["parameterType"]]
        if not isinstance(given[name], wanted) or (isinstance(given[name], bool) and wanted is not bool):
            raise InvalidInputError(f"input parameter {name} requires type {text}")
        literals = spec.get("literals")
        if literals and given[name] not in literals:
            raise InvalidInputError(f"input parameter {name} has a value that is not one of {literals}")
    if extra := [name for name in given if name not in specs]:
        raise InvalidInputError(f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")


def nodes(pipeline: str, tasks: Sequence[tuple[str, str]], state: str) -> Iterator[tuple[str, str, str]]:
    """Display name, state and a child's id of all nodes that Argo has of a run, retries and DAGs among them.

    KFP shows each of them as a task (apiserver/server/api_converter.go:1775-1855,
    common/util/workflow.go:906-920). States that it cannot represent, such as Argo's Omitted, are
    unspecified.
    """
    workflow = f"{pipeline}-x7k2q"
    for number, (name, of_node) in enumerate(_named(workflow, tasks, state)):
        yield name, of_node, f"{workflow}-{number + 1000000007}"


def _named(workflow: str, tasks: Sequence[tuple[str, str]], state: str) -> Iterator[tuple[str, str]]:
    yield workflow, state
    for name in ("root", "exit-handler-1", "condition-branches-2", "condition-3", "for-loop-5"):
        yield f"{name}-driver", "SUCCEEDED"
        yield name, state
    yield "condition-4", "SKIPPED"
    yield "exit-handler-1.onExit", "SUCCEEDED"
    for name in ("iteration-driver", "iteration-iterations", "iteration-iterations(0:0)"):
        yield name, "SUCCEEDED"
    yield "iteration-item-driver", "SUCCEEDED"
    yield "iteration-item", "SUCCEEDED"
    for name, of_task in tasks:
        yield f"{name}-driver", "SUCCEEDED"
        yield name, of_task
        yield "executor", of_task
        yield "executor(0)", "FAILED"
        yield "executor(1)", of_task

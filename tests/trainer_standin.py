"""What Kubeflow Trainer does with a `TrainJob`: its CRD's schema, its webhook, and the pods that it makes.

Read in kubeflow/trainer at v2.1.0, v2.2.0 and v2.3.0. The schemas are the published ones, in
`tests/data/trainer`. Beside each function stands the source that it follows. What it leaves out:

* CEL rules of the schema (`x-kubernetes-validations`): they hold fields immutable, and check `managedBy` and
  the URIs of initializers, which no job here has.
* Runtimes for other frameworks than torch, initializers, PodGroups, and `suspend`.
* Of a strategic merge patch only what a job here patches: maps merged key by key, lists merged by the keys in
  `MERGE_KEYS`, other lists replaced; no `$patch` directives.
* Resources replace the runtime's, as up to 2.2; from 2.3 on they are merged over them.
* The webhook's and the server's messages are the real ones up to their lists of offending values.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

DATA = Path(__file__).parent / "data" / "trainer"
VERSIONS = ("2.1", "2.2", "2.3")
ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
DENIED = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
"""Names that a job may not give to its nodes: pkg/constants/constants.go, `TorchRunReservedEnvNames`."""

MERGE_KEYS = {
    "replicatedJobs": "name",
    "containers": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "env": "name",
}

RUNTIME: dict[str, Any] = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {ANCESTOR: "trainer"}},
                            "spec": {
                                "template": {"spec": {"containers": [{"name": "node", "image": "torch:1"}]}}
                            },
                        },
                    }
                ]
            }
        },
    },
}
"""manifests/base/runtimes/torch_distributed.yaml, as it is installed."""


class RefusedError(Exception):
    """What the API answers in place of a created job."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def schema(version: str) -> dict[str, Any]:
    """The schema of a `TrainJob` in a version of Kubeflow Trainer."""
    found: dict[str, Any] = json.loads((DATA / f"trainjobs-{version}.json").read_text())
    return found["openAPIV3Schema"]


def admitted(body: Mapping[str, Any], version: str, runtime: Mapping[str, Any]) -> dict[str, Any]:
    """The job as the cluster keeps it: unknown fields dropped, defaults filled in, then checked.

    Raises:
        RefusedError: the schema or the webhook refuses it.
    """
    known = schema(version)
    kept = _pruned(copy.deepcopy(dict(body)), known)
    kept["metadata"] = copy.deepcopy(body["metadata"])  # every object's, and not the schema's business
    errors = sorted(Draft202012Validator(known).iter_errors(kept), key=str)
    if errors:
        where = ".".join(str(part) for part in errors[0].absolute_path)
        raise RefusedError(422, f'TrainJob.trainer.kubeflow.org "x" is invalid: {where}: {errors[0].message}')
    _reviewed(kept, runtime)
    return kept


def _pruned(value: Any, known: Mapping[str, Any]) -> Any:
    """As a structural schema prunes and defaults (k8s.io/apiextensions-apiserver/pkg/apiserver/schema)."""
    if isinstance(value, dict):
        if known.get("x-kubernetes-preserve-unknown-fields"):
            return value
        properties, others = known.get("properties", {}), known.get("additionalProperties")
        for name, field in properties.items():
            if name not in value and "default" in field:
                value[name] = field["default"]
        if others:
            return {name: _pruned(item, others) for name, item in value.items()}
        return {name: _pruned(item, properties[name]) for name, item in value.items() if name in properties}
    if isinstance(value, list):
        return [_pruned(item, known.get("items", {})) for item in value]
    return value


def _reviewed(job: Mapping[str, Any], runtime: Mapping[str, Any]) -> None:
    """pkg/runtime/framework/plugins/jobset/jobset.go `Validate`, plugins/torch/torch.go `Validate`."""
    spec = job["spec"]
    reserved = sorted(RESERVED & {variable["name"] for variable in spec.get("trainer", {}).get("env", [])})
    if reserved:
        raise RefusedError(403, f"{DENIED}spec.trainer.env: must not have reserved envs: {reserved}")
    jobs = {one["name"]: one for one in runtime["spec"]["template"]["spec"]["replicatedJobs"]}
    for patch in spec.get("runtimePatches", []):
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/\S+", patch["manager"]):
            raise RefusedError(403, f"{DENIED}manager: must be a domain-prefixed path")
        for one in _at(patch, "trainingRuntimeSpec", "template", "spec", "replicatedJobs") or []:
            if one["name"] not in jobs:
                raise RefusedError(403, f"{DENIED}must not have replicated job that doesn't exist")
            there = {
                c["name"] for c in jobs[one["name"]]["template"]["spec"]["template"]["spec"]["containers"]
            }
            for container in _at(one, "template", "spec", "template", "spec", "containers") or []:
                if container["name"] not in there:
                    raise RefusedError(403, f"{DENIED}must not have container that doesn't exist")
                if container.get("env"):
                    raise RefusedError(403, f"{DENIED}must not have envs for the node containers")


def node_pods(job: Mapping[str, Any], runtime: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pods of a job's nodes, without their status.

    pkg/runtime/core/trainingruntime.go `mergeRuntimePatches` and `newRuntimeInfo`, plugins/jobset/builder.go
    `Trainer`, plugins/torch/torch.go `EnforceMLPolicy`.
    """
    spec, name = job["spec"], job["metadata"]["name"]
    template = copy.deepcopy(runtime["spec"]["template"]["spec"])
    for patch in spec.get("runtimePatches", []):
        template = _merged(template, _at(patch, "trainingRuntimeSpec", "template", "spec") or {})
    (one,) = [made for made in template["replicatedJobs"] if _ancestor(made) == "trainer"]
    pod = one["template"]["spec"]["template"]
    (container,) = [made for made in pod["spec"]["containers"] if made["name"] == "node"]
    trainer = spec.get("trainer", {})
    container |= {key: trainer[key] for key in ("image", "command", "args") if key in trainer}
    container["resources"] = trainer.get("resourcesPerNode", container.get("resources", {}))
    nodes = trainer.get("numNodes", 1)
    environment = {
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(trainer.get("numProcPerNode", _processes(container["resources"]))),
        "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
        "PET_MASTER_PORT": "29500",
    }
    pods = []
    for node in range(nodes):
        made = copy.deepcopy(pod)
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": one["name"],
            "batch.kubernetes.io/job-completion-index": str(node),
        }
        metadata = made.setdefault("metadata", {})
        metadata |= {
            "name": f"{name}-{one['name']}-0-{node}-abcde",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {**metadata.get("labels", {}), **labels},
        }
        own = {**environment, "PET_NODE_RANK": str(node)}
        (container,) = [c for c in made["spec"]["containers"] if c["name"] == "node"]
        container["env"] = _merged(
            {"env": [*container.get("env", []), *trainer.get("env", [])]},
            {"env": [{"name": key, "value": value} for key, value in own.items()]},
        )["env"]
        made["spec"].setdefault("serviceAccountName", "default")  # the API server's, for every pod
        pods.append(made)
    return pods


def _processes(resources: Mapping[str, Any]) -> int | str:
    asked = resources.get("requests") or resources.get("limits") or {}
    return "auto" if any("gpu" in key for key in asked) else max(1, int(asked.get("cpu", 0)))


def _ancestor(replicated: Mapping[str, Any]) -> str | None:
    found: str | None = (_at(replicated, "template", "metadata", "labels") or {}).get(ANCESTOR)
    return found


def _merged(source: Any, patch: Any, name: str = "") -> Any:
    if isinstance(source, dict) and isinstance(patch, dict):
        return {
            key: _merged(source[key], patch[key], key)
            if key in source and key in patch
            else copy.deepcopy(patch.get(key, source.get(key)))
            for key in {**source, **patch}
        }
    if isinstance(patch, list) and (merge_key := MERGE_KEYS.get(name)):
        merged = {item[merge_key]: item for item in source}
        for item in patch:
            merged[item[merge_key]] = _merged(merged.get(item[merge_key], {}), item)
        return list(merged.values())
    return copy.deepcopy(patch)


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = (value or {}).get(name)
    return value

"""Fine-tuning on several machines of the stand-in for a Kubernetes cluster, and a look at what its nodes get.

The fixtures `served_cluster` and `cluster` are in `conftest.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from calib_components.nodes.job import JobConfig, Place
from calib_components.nodes.nodes import finetune
from calib_core.storage.uris import StoredFile

CONFIG = JobConfig(nodes=2, processes=2, epochs=3, cluster='{"platform": "kubeflow"}')
PLACES = {
    name: Place(path=f"/kfp/{name}", uri=f"gs://bucket/{name}") for name in ("model", "data", "adapter")
}
MODEL_GIB = 15
MODEL = StoredFile(
    uri="gs://bucket/model/model.safetensors",
    path="model.safetensors",
    size_bytes=MODEL_GIB * 2**30,
    version="1",
)


def train(config: JobConfig = CONFIG, **places: Place) -> None:
    finetune("cft", config, **{**PLACES, **places})


def on_kubeflow(**settings: Any) -> JobConfig:
    return replace(CONFIG, cluster=json.dumps({"platform": "kubeflow", **settings}))


def node(pod: dict[str, Any]) -> dict[str, Any]:
    """The container of a node's pod that trains."""
    (container,) = [made for made in pod["spec"]["containers"] if made["name"] == "node"]
    return container


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {made["name"]: made["value"] for made in node(pod)["env"] if "value" in made}


def mounts(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Volumes of a pod by the path at which its node mounts them."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in node(pod)["volumeMounts"]}

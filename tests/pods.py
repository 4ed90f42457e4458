"""Pods as Kubeflow's driver makes them of a package: what a test can hold to Kubernetes' own schemas."""

from __future__ import annotations

from typing import Any


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A Pod for each task that runs a container, by the executor's name without `exec-`.

    Args:
        documents: the package's YAML documents: the pipeline, and the platforms' part where there is one.
    """
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if documents[1:] else {}
    return {
        label.removeprefix("exec-"): _pod(label, executor["container"], platform.get(label, {}))
        for label, executor in documents[0]["deploymentSpec"]["executors"].items()
        if "container" in executor
    }


def _pod(label: str, container: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    unknown = config.keys() - {
        "activeDeadlineSeconds",
        "emptyDirMounts",
        "nodeSelector",
        "pvcMount",
        "secretAsEnv",
        "tolerations",
    }
    assert not unknown, unknown
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "main",
                "image": container["image"],
                "command": container["command"],
                "args": container["args"],
                "resources": _resources(container.get("resources", {})),
                "env": [*container.get("env", []), *_secrets(config)],
                "volumeMounts": [
                    *(
                        {"name": mount["constant"], "mountPath": mount["mountPath"]}
                        for mount in config.get("pvcMount", [])
                    ),
                    *(
                        {"name": mount["volumeName"], "mountPath": mount["mountPath"]}
                        for mount in config.get("emptyDirMounts", [])
                    ),
                ],
            }
        ],
        "volumes": [
            *(
                {"name": mount["constant"], "persistentVolumeClaim": {"claimName": mount["constant"]}}
                for mount in config.get("pvcMount", [])
            ),
            *(
                {"name": mount["volumeName"], "emptyDir": {"medium": mount["medium"]}}
                for mount in config.get("emptyDirMounts", [])
            ),
        ],
        "tolerations": [dict(toleration) for toleration in config.get("tolerations", [])],
        "nodeSelector": config.get("nodeSelector", {}).get("labels", {}),
    }
    if "activeDeadlineSeconds" in config:
        spec["activeDeadlineSeconds"] = int(config["activeDeadlineSeconds"])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": label}, "spec": spec}


def _secrets(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": pair["envVar"],
            "valueFrom": {"secretKeyRef": {"name": secret["secretName"], "key": pair["secretKey"]}},
        }
        for secret in config.get("secretAsEnv", [])
        for pair in secret["keyToEnv"]
    ]


def _resources(given: dict[str, Any]) -> dict[str, dict[str, str]]:
    names = {
        ("requests", "cpu"): "resourceCpuRequest",
        ("requests", "memory"): "resourceMemoryRequest",
        ("limits", "cpu"): "resourceCpuLimit",
        ("limits", "memory"): "resourceMemoryLimit",
    }
    made: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    for (part, resource), name in names.items():
        if name in given:
            made[part][resource] = given[name]
    if gpu := given.get("accelerator"):
        made["limits"][gpu["resourceType"]] = gpu["resourceCount"]
    return made

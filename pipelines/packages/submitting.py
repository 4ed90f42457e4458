"""What a platform can't do with a package and its parameters, told before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calib_core.errors import ConfigError
from calib_core.models.names import HUB_ID
from calib_pipelines.packages.spec import read_graph

BUCKETS = {"kubeflow": ("gs://", "s3://", "minio://"), "vertex": ("gs://",)}
"""URIs that tasks read and write, by platform."""

MOUNTED_BUCKETS = {"kubeflow": ("/gcs/", "/s3/", "/minio/"), "vertex": ("/gcs/",)}
"""Paths that stand for buckets, by platform."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_FROM_HUB = {
    *("model", "base_model", "questions", "fit", "calibration", "test"),
    *("out_of_domain", "preferences", "trained_on"),
}
_FOLDERS = {"stream", "champion"}
PLACES = {
    "restore-calibration": _FROM_HUB,
    "recalibrate": _FROM_HUB | _FOLDERS,
    "score-large": _FROM_HUB,
}
"""By pipeline: parameters that say where something lies."""


def check_places(target: str, package: Path, pipeline: str, values: Mapping[str, Any]) -> None:
    """Refuse places that the tasks of our own pipelines can't reach on a platform.

    Args:
        target: `kubeflow` or `vertex`.
        package: the compiled pipeline, which says what is mounted.
        pipeline: its name; of others than those of `PLACES` nothing is known here.
        values: its parameters.

    Raises:
        ConfigError: a place can't be reached; all of them are told together.
    """
    mounts = tuple(_mounts(package))
    wrong = [
        f"{name} is {value!r}: {problem}"
        for name, value in values.items()
        if name in PLACES.get(pipeline, ()) and value
        if (problem := _problem(target, value, mounts, hub=name not in _FOLDERS))
    ]
    if wrong:
        raise ConfigError(f"target {target}: {'; '.join(wrong)}")


def _problem(target: str, place: str, mounts: tuple[str, ...], *, hub: bool) -> str:
    """Why tasks can't reach a place, and what to do; empty if they can."""
    buckets = ", ".join(BUCKETS[target])
    reached = (*BUCKETS[target], *MOUNTED_BUCKETS[target], *(f"{mount}/" for mount in mounts))
    if place in mounts or place.startswith(reached) or (hub and _is_hub_id(place)):
        return ""
    if _SCHEME.match(place):
        return f"tasks there read {buckets} and no other URI; copy it to one of these"
    if place.startswith("/"):
        remedy = "compile with --pvc claim:/path, or " if target == "kubeflow" else ""
        mounted = f"only {', '.join(mounts)} is mounted there" if mounts else "no volume is mounted there"
        return f"{mounted}; {remedy}give a bucket's URI ({buckets})"
    if Path(place).exists():
        return f"lies on this machine, where no task sees it; copy it to a bucket ({buckets})"
    return f"is no bucket's URI ({buckets}), no mounted path" + (" and no hub id" if hub else "")


def _is_hub_id(place: str) -> bool:
    """Whether this is a hub's name, and no file or folder of this machine that was meant instead."""
    return bool(HUB_ID.fullmatch(place)) and not Path(place).exists()


def _mounts(package: Path) -> Iterator[str]:
    """Where a package mounts volume claims, each path once."""
    executors = read_graph(package).kubernetes.get("deploymentSpec", {}).get("executors", {}).values()
    yield from dict.fromkeys(
        mount["mountPath"].rstrip("/") for executor in executors for mount in executor.get("pvcMount", ())
    )


def check_accounts(package: Path) -> None:
    """Refuse a package for Vertex whose custom jobs would run as another account than its tasks.

    Raises:
        ConfigError: custom jobs name no service account, and so would run as one of Google's own.
    """
    inputs = {
        name.removeprefix("comp-"): component.get("inputDefinitions", {}).get("parameters", {})
        for name, component in read_graph(package).components.items()
    }
    jobs = sorted(
        name
        for name, given in inputs.items()
        if "worker_pool_specs" in given and not given.get("service_account", {}).get("defaultValue")
    )
    if jobs:
        raise ConfigError(
            f"target vertex: {package}: the custom jobs of {', '.join(jobs)} name no service account, and "
            "would run as another one than the other tasks; compile it with --service-account too"
        )

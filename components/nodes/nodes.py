"""Fine-tuning where it was asked for: in this process, in several of this machine, or on several machines.

Several machines are a Kubeflow `TrainJob` or a Vertex custom job, which runs the same image and the same
command (`python -m calib_core cft ...`) under torchrun on every node; this process makes the job, watches it,
and removes it again. `docs/distributed.md` describes the parameter `cluster`.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from calib_components.nodes.job import CustomJobSettings, JobConfig, Place, TrainJobSettings
from calib_core.errors import ConfigError
from calib_core.steps.finetune import cft, rcft
from calib_core.training.config import check_processes

METHODS = {"cft": cft, "rcft": rcft}


PLATFORMS: dict[str, type] = {"kubeflow": TrainJobSettings, "vertex": CustomJobSettings}


def finetune(method: str, config: JobConfig, *, model: Place, data: Place, adapter: Place) -> None:
    """Fine-tune a model and leave the adapter at its place.

    Args:
        method: `cft` or `rcft`.
        config: parameters of the run; with `nodes` above 1 a job on a cluster does it.
        model: the model to train.
        data: data folder of `data_prep`.
        adapter: adapter folder to write.

    Raises:
        CalibError: as `calib_core.steps.finetune` says, or the job could not be made, or failed.
    """
    check_processes(config, config.processes * config.nodes)
    if config.nodes == 1:
        METHODS[method](config.training(), model.path, Path(data.path), Path(adapter.path))
        return
    settings = read_settings(config.cluster)
    places = {"model": model, "data": data, "adapter": adapter}
    try:
        if isinstance(settings, TrainJobSettings):
            from calib_components.nodes.kubeflow import train_job  # noqa: PLC0415 - only where asked for

            train_job(method, config, settings, **places)
        else:
            from calib_components.nodes.vertex import custom_job  # noqa: PLC0415

            custom_job(method, config, settings, **places)
    except ModuleNotFoundError as error:
        extra = "kubeflow" if isinstance(settings, TrainJobSettings) else "vertex"
        raise ConfigError(
            f"a job on several machines needs the package {error.name}; install 'calib-core[{extra}]'"
        ) from error


def read_settings(cluster: str) -> TrainJobSettings | CustomJobSettings:
    """The parameter `cluster` as settings of its platform.

    Raises:
        ConfigError: it is no JSON object, names no platform, or has names or values that are not allowed.
    """
    example = """'{"platform": "kubeflow", "volume": "my-claim"}'"""
    try:
        given = json.loads(cluster)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"cluster is {cluster!r}, which is no JSON ({error}); with nodes above 1 give, say, {example}"
        ) from None
    platform = given.pop("platform", None) if isinstance(given, dict) else None
    if platform not in PLATFORMS:
        raise ConfigError(
            f"cluster is {cluster!r}; give a JSON object whose platform is one of "
            f"{', '.join(PLATFORMS)}: {example}"
        )
    kind = PLATFORMS[platform]
    names = [field.name for field in fields(kind)]
    if unknown := sorted(set(given) - set(names)):
        raise ConfigError(
            f"cluster: no setting {', '.join(unknown)} for {platform}; there are {', '.join(names)}"
        )
    try:
        settings: TrainJobSettings | CustomJobSettings = kind(**given)
    except TypeError:
        missing = [field.name for field in fields(kind) if field.name not in given and _required(field)]
        raise ConfigError(f"cluster: {', '.join(missing)} missing for {platform}; give them") from None
    return settings


def _required(field: Any) -> bool:
    return field.default is MISSING

"""The configs whose parameters each pipeline offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from calib_components.nodes.job import JobConfig
from calib_components.register_model.registries import RegisterConfig
from calib_core.settings.parameters import Parameter, parameters_of
from calib_core.steps.evaluate import EvaluateConfig
from calib_core.steps.fresh import FreshConfig
from calib_core.steps.prepare import PrepareConfig
from calib_core.steps.promote import PromoteConfig
from calib_core.steps.shards import ScoreConfig, ShardConfig
from calib_core.training.config import AlignConfig

OFFERED: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "restore-calibration": {
        "": (PrepareConfig, EvaluateConfig, JobConfig, PromoteConfig),
        "dpo_": (AlignConfig,),
    },
    "recalibrate": {"": (FreshConfig, EvaluateConfig, JobConfig, PromoteConfig, RegisterConfig)},
    "score-large": {"": (ShardConfig, ScoreConfig)},
}
"""By the pipeline's name, and by the prefix that it gives to their parameters."""


def declared(pipeline: str) -> dict[str, Parameter]:
    """Parameters that a pipeline may offer, by the names that they have there; none for a foreign one.

    What a config requires is left out: the pipeline may not need it.
    """
    return {
        prefix + one.name: _prefixed(one, prefix)
        for prefix, classes in OFFERED.get(pipeline, {}).items()
        for config_class in classes
        for one in parameters_of(config_class)
    }


def _prefixed(one: Parameter, prefix: str) -> Parameter:
    if not prefix:
        return one
    text = f"In {prefix.rstrip('_').upper()}: {one.description[0].lower()}{one.description[1:]}"
    return replace(one, name=prefix + one.name, description=text)

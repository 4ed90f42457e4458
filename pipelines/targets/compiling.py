"""`calib pipeline compile`: one definition, a package for Kubeflow or for Vertex, hardware as settings."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp.dsl.base_component import BaseComponent

from calib_core.commands.library import Subparsers, command
from calib_core.errors import ConfigError
from calib_core.runtime.progress import say
from calib_core.settings.flags import add_flags, option_of
from calib_core.settings.parameters import Parameter, config_from, parameters_of
from calib_core.storage.disks import cache_dir
from calib_core.storage.files import sha256_file, whole_file
from calib_core.storage.leftovers import scratch_folder
from calib_pipelines.compile import DEFINITIONS, write
from calib_pipelines.definitions import restore_calibration
from calib_pipelines.definitions.platforms import ClusterPlatform, Settings, build
from calib_pipelines.packages.checking import add_backend_version, check_package, tell
from calib_pipelines.targets.kubeflow import Kubeflow, KubeflowSettings
from calib_pipelines.targets.vertex import Vertex, VertexSettings


@dataclass(frozen=True, kw_only=True)
class Target:
    """A platform: its settings, and what places tasks by them."""

    settings: type[Settings]
    place: Callable[[Any], ClusterPlatform]


TARGETS = {
    "kubeflow": Target(settings=KubeflowSettings, place=Kubeflow),
    "vertex": Target(settings=VertexSettings, place=Vertex),
}


def package(target: str, settings: Settings, *, pipeline: str = restore_calibration.NAME) -> BaseComponent:
    """A pipeline for a platform.

    Args:
        target: `kubeflow` or `vertex`.
        settings: that platform's.
        pipeline: name of the pipeline, a key of `DEFINITIONS`.

    Raises:
        ConfigError: the platform's package isn't installed.
    """
    place = TARGETS[target].place(settings)
    return build(DEFINITIONS[pipeline], place, name=pipeline)


def add_compile(commands: Subparsers) -> None:
    """Add `compile` with the flags of every platform."""
    parser = command(commands, "compile", "compile a pipeline to a package for Kubeflow or Vertex")
    parser.add_argument("--target", choices=tuple(TARGETS), default="kubeflow", help="default: kubeflow")
    parser.add_argument("--output", type=Path, help="default: PIPELINE-TARGET.yaml")
    add_backend_version(parser)
    add_settings(parser)
    parser.set_defaults(run=_compile)


def add_settings(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add the flags that say which pipeline is compiled and with which settings of every platform.

    Args:
        parser: gets the flags.
        without: settings for which it has flags already.
    """
    group = parser.add_argument_group("what is compiled, with the image that $CALIB_IMAGE names")
    group.add_argument(
        "--pipeline",
        choices=tuple(DEFINITIONS),
        default=restore_calibration.NAME,
        help=f"default: {restore_calibration.NAME}",
    )
    add_flags(parser, parameters_of(Settings))
    for target in TARGETS.values():
        add_flags(parser, [one for one in own_parameters(target.settings) if one.name not in without])


def own_parameters(settings: type[Settings]) -> tuple[Parameter, ...]:
    """Parameters that a platform has beyond those of all."""
    shared = {parameter.name for parameter in parameters_of(Settings)}
    return tuple(parameter for parameter in parameters_of(settings) if parameter.name not in shared)


def settings_from(target: str, values: Mapping[str, Any]) -> Settings:
    """A platform's settings from the values of all flags.

    Raises:
        ConfigError: a value is not usable, or a flag of another platform was given.
    """
    for other in TARGETS.keys() - {target}:
        strange = [
            option_of(parameter.name)
            for parameter in own_parameters(TARGETS[other].settings)
            if values[parameter.name] != parameter.default
        ]
        if strange:
            raise ConfigError(
                f"--target is {target}, but {', '.join(strange)} is for {other}; leave it out, or give "
                f"--target {other}"
            )
    return config_from(TARGETS[target].settings, values)


def compile_package(target: str, settings: Settings, *, pipeline: str) -> Path:
    """Compile a pipeline for a platform, into a file of the cache folder that its content names.

    Raises:
        ConfigError: the platform's package isn't installed.
    """
    folder = cache_dir() / "packages"
    with scratch_folder() as scratch:
        made = scratch / "package.yaml"
        write(package(target, settings, pipeline=pipeline), made)
        path = folder / f"{pipeline}-{target}-{sha256_file(made)[:12]}.yaml"
        with whole_file(path) as file:
            shutil.copyfile(made, file)
    return path


def _compile(given: argparse.Namespace) -> Mapping[str, Any]:
    output: Path = given.output or Path(f"{given.pipeline}-{given.target}.yaml")
    if output.suffix not in (".yaml", ".json"):
        raise ConfigError(f"{output}: the package's name must end in .yaml or .json")
    settings = settings_from(given.target, vars(given))
    with scratch_folder() as folder:
        made = folder / output.name
        write(package(given.target, settings, pipeline=given.pipeline), made)
        tell(check_package(made, given.target, version=given.backend_version))
        with whole_file(output) as file:
            shutil.copyfile(made, file)
    if advice := settings.advice():
        say(f"mind: {advice}")
    return {"package": str(output)}

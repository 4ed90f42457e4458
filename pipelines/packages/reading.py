"""Compiled pipeline packages: what they take, and whether given values fit, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any

from calib_components.nodes.job import JobConfig
from calib_core.errors import ConfigError
from calib_core.settings.flags import suggestion
from calib_core.settings.parameters import Parameter, config_from, parameters_of
from calib_core.storage.files import read_json, sha256_file, sha256_json
from calib_core.training.config import check_processes
from calib_pipelines.definitions.offered import OFFERED, declared

FLAG_TYPES = {"String": str, "Integer": int, "Float": float, "Boolean": bool}

_WANTED = {
    "String": ("a text", lambda value: isinstance(value, str)),
    "Integer": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "Float": (
        "a finite number",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
    ),
    "Boolean": ("true or false", lambda value: isinstance(value, bool)),
    "List": ("a list", lambda value: isinstance(value, list)),
    "Dict": ("an object", lambda value: isinstance(value, dict)),
}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A compiled pipeline.

    Attributes:
        path: The file.
        name: The pipeline's name.
        inputs: Its parameters by name, as KFP reads them (type, default, optional, description).
        sha256: Hash of the file's bytes.
    """

    path: Path
    name: str
    inputs: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is to be run, complete: sent twice, it means the same run.

    Attributes:
        name: Name of the run or of the schedule, chosen here, so that it can be looked up.
        package: The compiled pipeline.
        parameters: Values by name; those left out have the package's defaults.
        pipeline_root: Folder or bucket prefix for what tasks write; "" for the platform's own.
        service_account: Account that the tasks run as; "" for the platform's own.
    """

    name: str
    package: Package
    parameters: Mapping[str, Any]
    pipeline_root: str = ""
    service_account: str = ""

    def fingerprint(self, *more: str) -> str:
        """32 hex digits that name this content, and `more` of it such as a schedule's times."""
        content = [
            self.package.sha256,
            dict(self.parameters),
            self.pipeline_root,
            self.service_account,
            *more,
        ]
        return sha256_json(content)[:32]


def parameter_flags(
    pipeline: str, inputs: Mapping[str, Any], taken: Iterable[str] = ()
) -> tuple[Parameter, ...]:
    """Parameters of a pipeline that can be options: those of a simple type whose name isn't `taken`.

    Args:
        pipeline: its name; of our own, choices and groups are known too.
        inputs: its parameters by name, as KFP reads them.
        taken: names that options of the command have already.
    """
    known = declared(pipeline)
    found = []
    for name, given in inputs.items():
        if name in taken or given.type not in FLAG_TYPES:
            continue
        kind = FLAG_TYPES[given.type]
        one = known.get(name) or Parameter(
            name=name, type=kind, default=None, description="", group=f"pipeline {pipeline}"
        )
        default: Any = MISSING
        if given.optional:  # KFP reads whole numbers as floats
            default = int(given.default) if kind is int and given.default is not None else given.default
        text = " ".join((given.description or name).split())
        found.append(replace(one, type=kind, default=default, description=text))
    return tuple(found)


def load_package(path: Path) -> Package:
    """Read a compiled pipeline.

    Raises:
        ConfigError: the file is missing or is no compiled pipeline.
    """
    from kfp.components import load_component_from_file  # noqa: PLC0415 - slow, and only needed here

    if not path.is_file():
        raise ConfigError(
            f"{path}: no such package; make one with: calib pipeline compile --target kubeflow|vertex "
            f"--output {path}"
        )
    try:
        pipeline = load_component_from_file(str(path))
        spec, inputs = pipeline.pipeline_spec, pipeline.component_spec.inputs
    except Exception as error:  # KFP raises whatever its parsers meet
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: not a compiled pipeline ({reason}); make one with: calib pipeline compile"
        ) from None
    return Package(
        path=path,
        name=spec.pipeline_info.name,
        inputs=inputs or {},
        sha256=sha256_file(path),
    )


def read_parameters(path: Path) -> dict[str, Any]:
    """Parameters from a JSON file: one object, names to values.

    Raises:
        ConfigError: the file holds something else.
        DataFormatError: the file is missing or isn't JSON.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ConfigError(
            f'{path}: holds {type(values).__name__}, not an object; write {{"parameter": value, ...}}'
        )
    return values


def check_steps(pipeline: str, values: Mapping[str, Any]) -> None:
    """Refuse before the first task what a later one would refuse.

    Args:
        pipeline: its name; nothing is known here of others than our own.
        values: the parameters that are given.

    Raises:
        ConfigError: a value is out of range, or two don't go together.
    """
    for prefix, classes in OFFERED.get(pipeline, {}).items():
        own = {name.removeprefix(prefix): one for name, one in values.items() if name.startswith(prefix)}
        for config_class in classes:
            every = {one.name: one.default for one in parameters_of(config_class)}
            needed = [name for name, default in every.items() if default is MISSING]
            if not all(own.get(name) for name in needed):
                continue  # a part of the pipeline that isn't asked for
            config: Any = config_from(config_class, {**every, **own})
            if isinstance(config, JobConfig):
                check_processes(config, config.processes * config.nodes)


def check_parameters(package: Package, values: Mapping[str, Any]) -> None:
    """Hold `values` to what the package takes.

    Raises:
        ConfigError: an unknown name, a missing value or one of another type, all of them together; or a value
            that a task would refuse.
    """
    wrong = []
    for name, value in values.items():
        if name not in package.inputs:
            wrong.append(f"`{name}`: no such parameter{suggestion(name, package.inputs)}")
            continue
        wanted, fits = _WANTED.get(package.inputs[name].type, ("", lambda value: True))
        if not fits(value):
            wrong.append(f"`{name}`: got {value!r}, needs {wanted}")
    wrong += [
        f"`{name}`: a value is needed"
        for name, given in package.inputs.items()
        if not given.optional and values.get(name) in (None, "")
    ]
    if wrong:
        takes = ", ".join(package.inputs) or "no parameters"
        raise ConfigError(f"{package.path} ({package.name}): {'; '.join(wrong)}. It takes {takes}")
    check_steps(package.name, values)

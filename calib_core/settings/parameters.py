"""Parameters of a step, read from its config dataclass: what flags and components are made to match."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a step.

    Attributes:
        name: Name of the config's field.
        type: `str`, `int`, `float` or `bool`.
        default: Value where none is given; None stands for "not given".
        description: What it does, in one line.
    """

    name: str
    type: type
    default: Any
    description: str


def parameters_of(config_class: type) -> tuple[Parameter, ...]:
    """Parameters of a config dataclass, in the order of its fields.

    Raises:
        TypeError: a field has no description under "Attributes:", or no type that KFP has.
    """
    hints = typing.get_type_hints(config_class)
    descriptions = _descriptions(config_class)
    parameters = []
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(option for option in typing.get_args(kind) if option is not type(None))
        if kind not in (str, int, float, bool) or field.name not in descriptions:
            raise TypeError(
                f"{config_class.__name__}.{field.name}: no simple type, or no line under Attributes"
            )
        parameters.append(
            Parameter(name=field.name, type=kind, default=field.default, description=descriptions[field.name])
        )
    return tuple(parameters)


def config_from(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from those of `values` that bear its fields' names."""
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: values[name] for name in names})


def add_flags(parser: argparse.ArgumentParser, parameters: Iterable[Parameter]) -> None:
    """Give `parser` one flag per parameter: `learning_rate` becomes `--learning-rate`."""
    shown = {str: "TEXT", int: "N", float: "X"}
    for parameter in parameters:
        flag = "--" + parameter.name.replace("_", "-")
        text = parameter.description.replace("%", "%%")
        if parameter.default not in (None, "", dataclasses.MISSING):
            text += f" (default: {parameter.default})"
        if parameter.type is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=parameter.default, help=text
            )
            continue
        required = parameter.default is dataclasses.MISSING
        parser.add_argument(
            flag,
            type=parameter.type,
            required=required,
            default=None if required else parameter.default,
            metavar=shown[parameter.type],
            help=text,
        )


def flags_of(config: Any) -> list[str]:
    """The flags of `add_flags` that give this config, each as one word: `--learning-rate=0.0005`."""
    flags = []
    for parameter in parameters_of(type(config)):
        value, name = getattr(config, parameter.name), parameter.name.replace("_", "-")
        if parameter.type is bool:
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            flags.append(f"--{name}={value}")
    return flags


def _descriptions(config_class: type) -> dict[str, str]:
    """The lines under "Attributes:" of a class and of its bases, by field name."""
    found: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        for entry in re.finditer(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            found[entry.group(1)] = " ".join(entry.group(2).split())
    return found

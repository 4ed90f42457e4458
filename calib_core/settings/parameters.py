"""Parameters of a step: declared once, as fields of its config, and read from there by whoever needs them."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

ConfigType = TypeVar("ConfigType")

_DECLARED = "parameter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What numbers a parameter takes.

    Attributes:
        at_least: Smallest number allowed.
        above: Number that it must exceed.
        at_most: Largest number allowed.
        below: Number that it must stay under.
    """

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def allow(self, value: float) -> bool:
        """Whether a number lies within."""
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    def __str__(self) -> str:
        """As a message asks for it.

        Example:
            >>> print(Limits(at_least=1), Limits(above=0, below=1), Limits(at_least=0, at_most=1), sep="; ")
            1 or more; more than 0 and below 1; 0 to 1
        """
        if self.at_least > -math.inf and self.at_most < math.inf:
            return f"{self.at_least:g} to {self.at_most:g}"
        texts = {
            f"{self.at_least:g} or more": self.at_least > -math.inf,
            f"more than {self.above:g}": self.above > -math.inf,
            f"at most {self.at_most:g}": self.at_most < math.inf,
            f"below {self.below:g}": self.below < math.inf,
        }
        return " and ".join(text for text, holds in texts.items() if holds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a step.

    Attributes:
        name: Name of the config's field.
        type: `str`, `int`, `float` or `bool`.
        default: Value where none is given; None stands for "not given", MISSING for a required one.
        description: What it does, in one line.
        choices: All values that it takes; empty if there are others.
        limits: Numbers that it takes.
        group: What it belongs to, for a command's help.
    """

    name: str
    type: type
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    limits: Limits = Limits()
    group: str = ""


def parameter(
    default: Any = dataclasses.MISSING, description: str = "", *, choices: Sequence[str] = (), **limits: float
) -> Any:
    """Declare a parameter, as the value of a config's field. Its type is the field's annotation.

    Args:
        default: Value where none is given; MISSING where one must be.
        description: What it does, in one line: the text of help, component YAML and tables.
        choices: All values that it takes, where no `Literal` in the annotation can say so.
        **limits: `at_least`, `above`, `at_most`, `below`, for numbers.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Training:
        ...     epochs: int = parameter(5, "Maximum number of epochs.", at_least=1)
        >>> [(one.name, one.default, str(one.limits)) for one in parameters_of(Training)]
        [('epochs', 5, '1 or more')]
    """
    declared = {"description": description, "choices": tuple(choices), "limits": Limits(**limits)}
    return dataclasses.field(default=default, metadata={_DECLARED: declared})


def parameters_of(config_class: type) -> tuple[Parameter, ...]:
    """Parameters of a config: those that it declares itself, then those of each group that it takes in.

    A subclass that only gives a field another default keeps the rest of its declaration.

    Raises:
        TypeError: a field is not declared by `parameter`, or has a type that components don't know.
    """
    hints = typing.get_type_hints(config_class)
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    found: dict[str, Parameter] = {}
    for owner in config_class.__mro__:
        fields: Mapping[str, dataclasses.Field[Any]] = vars(owner).get("__dataclass_fields__", {})
        for name in inspect.get_annotations(owner):
            if name in fields and name not in found and (declared := fields[name].metadata.get(_DECLARED)):
                kind, choices = _kind(f"{config_class.__name__}.{name}", hints[name])
                found[name] = Parameter(
                    name=name,
                    type=kind,
                    default=defaults[name],
                    description=declared["description"],
                    choices=choices or declared["choices"],
                    limits=declared["limits"],
                    group=getattr(owner, "GROUP", ""),
                )
    if undeclared := defaults.keys() - found.keys():
        raise TypeError(f"{config_class.__name__}: not declared by parameter(): {sorted(undeclared)}")
    return tuple(found.values())


def values_of(config: Any, group: type) -> dict[str, Any]:
    """The values that a config has for the parameters of one of its groups, by name.

    Args:
        config: The config.
        group: The group; a class that the config's class takes in.

    Example:
        >>> from calib_core.settings.groups import Bins, Measuring
        >>> values_of(Measuring(n_bins=15), Bins)
        {'n_bins': 15}
    """
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(group)}


def _kind(where: str, hint: Any) -> tuple[type, tuple[str, ...]]:
    """A field's simple type, and its choices where it is a `Literal`."""
    if isinstance(hint, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is typing.Literal:
        return str, typing.get_args(hint)
    if hint not in (str, int, float, bool):
        raise TypeError(f"{where}: components don't know the type {hint}; give str, int, float or bool")
    return hint, ()


def config_from(config_class: type[ConfigType], values: Mapping[str, Any]) -> ConfigType:
    """Build a config from those of `values` that bear its fields' names."""
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: values[name] for name in names})

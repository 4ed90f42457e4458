"""The check of a config: all of its errors together, each with the value received and what to give.

Messages put parameters in backticks, as `epochs` or `on_bad_row=drop`; a command shows them as they are typed
there, as --epochs and --on-bad-row drop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from calib_core.errors import ConfigError
from calib_core.settings.parameters import parameters_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the configs and of the groups of parameters that several of them share.

    Fields are declared by `settings.parameters.parameter`. A config is checked when it is made: types,
    choices and limits as declared, then its `rules`.

    Raises:
        ConfigError: something is wrong; the message lists all of it.
    """

    GROUP = ""
    """Heading of its parameters in a command's help."""

    def __post_init__(self) -> None:
        check = ConfigCheck(self)
        for one in parameters_of(type(self)):
            if one.choices:
                check.one_of(one.name, one.choices)
            if one.type in (int, float):
                check.value(one.name, one.limits.allow, str(one.limits))
        self.rules(check)
        check.finish()

    def rules(self, check: ConfigCheck) -> None:
        """Check what can't be declared, such as parameters that must go together; call the base's first."""


class ConfigCheck:
    """Collects what is wrong with a config, and raises it as one error.

    The types of all fields are checked first, and no rule sees a value of the wrong type.

    Example:
        def rules(self, check: ConfigCheck) -> None:
            super().rules(check)
            check.that(lambda c: c.low < c.high, f"`low` {self.low} is not below `high`; lower it")
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._problems: list[str] = []
        self._mistyped: set[str] = set()
        hints = get_type_hints(type(config))
        for field in dataclasses.fields(config):
            hint = hints[field.name]
            if get_origin(hint) is Literal:
                hint = str
            kinds = get_args(hint) or (hint,)
            if not _has_type(getattr(config, field.name), kinds):
                self._mistyped.add(field.name)
                names = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
                self._add(field.name, f"a finite {names}" if float in kinds else names)

    def value(self, field: str, allowed: Callable[[Any], bool], expected: str) -> None:
        """The field's value must satisfy `allowed`; None is left alone where the type allows it."""
        value = getattr(self._config, field)
        if field not in self._mistyped and value is not None and not allowed(value):
            self._add(field, expected)

    def one_of(self, field: str, choices: Sequence[str]) -> None:
        """The field's value must be one of `choices`."""
        self.value(field, lambda value: value in choices, "one of " + ", ".join(map(repr, choices)))

    def that(self, holds: Callable[[Any], bool], message: str) -> None:
        """Several fields together: `message` says what is wrong, with the values, and what to do."""
        if not self._mistyped and not holds(self._config):
            self._problems.append(message)

    def finish(self) -> None:
        """Raise what was found.

        Raises:
            ConfigError: something was; the message lists all of it.
        """
        if self._problems:
            raise ConfigError("; ".join(self._problems))

    def _add(self, field: str, expected: str) -> None:
        self._problems.append(f"`{field}` is {getattr(self._config, field)!r}; give {expected}")


def _has_type(value: Any, kinds: Sequence[type]) -> bool:
    """Whether a value has one of the types: ints pass as floats, bools not as numbers, NaN not at all."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)

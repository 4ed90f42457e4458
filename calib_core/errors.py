"""The errors that a user can cause, each with the exit code that a command ends with.

Every message says what is wrong, where (file, row, field), and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class CalibError(Exception):
    """Base of all errors raised on purpose by this package; `exit_code` is what a command ends with.

    Example:
        >>> from calib_core import conf_ece
        >>> try:
        ...     conf_ece([1.7], [1])
        ... except CalibError as error:
        ...     error.exit_code, str(error).partition(",")[0]
        (2, 'conf must be probabilities in [0')
    """

    exit_code = 1


class DataFormatError(CalibError):
    """A file or a table does not hold what its format asks for."""

    exit_code = 2


class EvidenceError(DataFormatError):
    """What is to be promoted is not what was measured, or not measured fairly; the message says where."""


class TokenizationError(CalibError):
    """The tokenizer cannot express the prompt or the option letters as scoring needs them."""

    exit_code = 2


class ConfigError(CalibError):
    """A parameter, or a combination of parameters, is not usable."""

    exit_code = 2


class NotEnoughDataError(CalibError):
    """The data can't support the decision that was asked for; the message says how much would."""

    exit_code = 3


class StaleVersionError(CalibError):
    """A file was changed by someone else between reading and writing it, so nothing was written."""


NAMED = 20
"""How many rows or questions an error names; all are counted."""


def short(value: object, limit: int = 80) -> str:
    """A value's repr, cut to fit a message, whatever its size."""
    if isinstance(value, str | bytes | list | tuple):
        value = value[:limit]  # the rest wouldn't be shown, and may be long
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an endless integer, or a value nested too deep
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def listed(names: Iterable[object], limit: int = NAMED) -> str:
    """Names joined by commas, the first ones with their number where there are many."""
    shown = list(names)
    more = len(shown) - limit
    text = ", ".join(str(name) for name in shown[:limit])
    return f"{text} and {more:,} more" if more > 0 else text

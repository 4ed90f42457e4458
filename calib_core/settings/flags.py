"""Parameters as options of a command line: made from their declarations, and named so in messages."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from calib_core.settings.parameters import Parameter, parameters_of

SHOWN_CHOICES = 5
"""So many choices stand in the usage; more of them only in the text."""

_NAMED = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")
_CHOSEN = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations, and asks "did you mean" where a name is mistyped."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; an unknown option ends the program with a suggestion, in the parser of its own command."""
        found, rest = super().parse_known_args(args, namespace)
        unknown = [word.partition("=")[0] for word in rest if word.startswith("--") and word != "--"]
        if unknown and not self._subparsers:
            told = [f"{word}{suggestion(word, self._option_string_actions)}" for word in unknown]
            self.error(f"no such option: {', '.join(told)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with a suggestion where a choice was mistyped, and exit with 2."""
        if chosen := _CHOSEN.search(message):
            choices = [word.strip().strip("'\"") for word in chosen[2].split(",")]
            message += suggestion(chosen[1], choices)
        super().error(message)

    def as_typed(self, message: str) -> str:
        """A message in which parameters that are this parser's options stand as they are typed.

        Example:
            >>> parser = Parser()
            >>> _ = parser.add_argument("--on-bad-row")
            >>> parser.as_typed("mend the rows, or give `on_bad_row=drop`; `other` stays")
            'mend the rows, or give --on-bad-row drop; `other` stays'
        """

        def typed(name: re.Match[str]) -> str:
            option = option_of(name[1])
            if option not in self._option_string_actions:
                return name[0]
            return option if name[2] is None else f"{option} {name[2]}"

        return _NAMED.sub(typed, message)


def option_of(name: str) -> str:
    """A parameter's option: `learning_rate` is `--learning-rate`."""
    return "--" + name.replace("_", "-")


def add_flags(
    parser: argparse.ArgumentParser, parameters: Iterable[Parameter], *, given_only: bool = False
) -> None:
    """Give `parser` one option per parameter, under the headings of the groups that they belong to.

    Args:
        parser: gets the options.
        parameters: what they are made from.
        given_only: whether only those that are typed appear among the parsed arguments, and none is required;
            the defaults are someone else's, and stand in the help.
    """
    headings: dict[str, Any] = {"": parser}
    for one in parameters:
        if one.group not in headings:
            headings[one.group] = parser.add_argument_group(one.group)
        _add_flag(headings[one.group], one, given_only=given_only)


def _add_flag(parser: Any, one: Parameter, *, given_only: bool) -> None:
    shown = {str: "TEXT", int: "N", float: "X"}
    text = one.description.replace("%", "%%")
    required = one.default is dataclasses.MISSING
    few = 0 < len(one.choices) <= SHOWN_CHOICES
    if one.choices and not few:
        text += f" One of {', '.join(filter(None, one.choices))}."
    if required:
        text += " (required)"
    elif one.default not in (None, ""):
        text += f" (default: {_plain(one.default)})"
    default = argparse.SUPPRESS if given_only else None if required else one.default
    if one.type is bool:
        parser.add_argument(
            option_of(one.name), action=argparse.BooleanOptionalAction, default=default, help=text
        )
        return
    parser.add_argument(
        option_of(one.name),
        type=one.type,
        choices=one.choices or None,
        required=required and not given_only,
        default=default,
        metavar=f"{{{','.join(filter(None, one.choices))}}}" if few else shown[one.type],
        help=text,
    )


def flags_of(config: Any) -> list[str]:
    """The options of `add_flags` that give this config, each as one word: `--learning-rate=0.0005`."""
    flags = []
    for one in parameters_of(type(config)):
        value, option = getattr(config, one.name), option_of(one.name)
        if one.type is bool:
            flags.append(option if value else "--no-" + option.removeprefix("--"))
        elif value is not None:
            flags.append(f"{option}={value}")
    return flags


def _plain(default: Any) -> str:
    """A default as it would be typed: 0.0005, and 8 for 8.0."""
    return f"{default:g}" if isinstance(default, float) and default == round(default) else str(default)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, where one of the known words is close; else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""

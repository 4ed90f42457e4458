"""JSON as it is read everywhere: a key given twice, endless nesting and endless numbers are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from calib_core.storage.limits import JSON_DEPTH

_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_INTEGER_DIGITS = "integer string conversion"  # in what Python says of integers beyond its own limit


class JsonError(ValueError):
    """A text is not JSON, or not such as is read here; the message says why and, where it is known, where."""


def parse_json(text: str | bytes, *, unicode_only: bool = False) -> Any:
    """The value that a JSON text stands for.

    `NaN` and the infinities are read, as Python writes them; a byte order mark is skipped.

    Args:
        text: JSON, as text or as UTF-8.
        unicode_only: whether to refuse halves of surrogate pairs, which UTF-8 can't write.

    Raises:
        JsonError: the text is not JSON, gives a key of an object twice, is nested deeper than the limit
            `json_depth`, or holds an integer of more than 4,300 digits.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
        ...
    calib_core.storage.json_text.JsonError: the key 'a' is given twice in one object
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8: byte {error.start} (0x{error.object[error.start]:02x})") from None
    text = text.removeprefix("\ufeff")
    value, end = _value(text, _space(text, 0))
    if (rest := _space(text, end)) < len(text):
        raise JsonError(f"something follows the value: {_place(text, rest)}")
    if unicode_only and "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise JsonError("half of a surrogate pair, which UTF-8 can't write") from None
    return value


def parse_json_list(text: str) -> Iterator[Any]:
    """The values of a JSON list, one after the other, so that only one of them is held at a time.

    Args:
        text: a JSON list.

    Raises:
        JsonError: as `parse_json` says.
    """
    place = _space(text, 0)
    if text[place : place + 1] != "[":
        raise JsonError(f"a list is expected: {_place(text, place)}")
    place = _space(text, place + 1)
    if text[place : place + 1] != "]":
        while True:
            value, end = _value(text, place)
            yield value
            place = _space(text, end)
            if text[place : place + 1] == "]":
                break
            if text[place : place + 1] != ",":
                raise JsonError(f"',' or ']' is expected: {_place(text, place)}")
            place = _space(text, place + 1)
    if (rest := _space(text, place + 1)) < len(text):
        raise JsonError(f"something follows the list: {_place(text, rest)}")


def _value(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at a place of a text, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except JsonError:
        raise
    except RecursionError:
        raise JsonError(JSON_DEPTH.exceeded()) from None
    except ValueError as error:
        problem = "an integer of more than 4,300 digits" if _INTEGER_DIGITS in str(error) else str(error)
        raise JsonError(problem) from None
    # Counting brackets is quick, and nearly every text has too few to be nested too deep.
    if text.count("[", start, end) + text.count("{", start, end) > JSON_DEPTH.value():
        _check_depth(value)
    return value, end


def _space(text: str, start: int) -> int:
    """Where white space ends."""
    found = _WHITE_SPACE.match(text, start)
    return found.end() if found else start


def _place(text: str, index: int) -> str:
    """A place in a text as json names it."""
    line = text.count("\n", 0, index)
    return f"line {line + 1} column {index - text.rfind(chr(10), 0, index)} (char {index})"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs, each key once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse_repeated(pairs)
    return found


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> NoReturn:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise JsonError(f"the key {key[:40]!a} is given twice in one object")
        seen.add(key)
    raise AssertionError("no key is repeated")


def _check_depth(value: Any) -> None:
    """Refuse a value that is nested deeper than the limit."""
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH.value()):
        level = [
            part
            for each in level
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    if any(isinstance(part, dict | list) for part in level):
        raise JsonError(JSON_DEPTH.exceeded())


_DECODER = json.JSONDecoder(object_pairs_hook=_object)

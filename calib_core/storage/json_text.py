"""JSON as it is read everywhere: a key given twice, endless nesting and endless numbers are refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from calib_core.settings.limits import JSON_DEPTH

_INTEGER_DIGITS = "integer string conversion"  # in what Python says of integers beyond its own limit


class JsonError(ValueError):
    """A text is not JSON, or not such as is read here; the message says why and, where it is known, where."""


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    `NaN` and the infinities are read, as Python writes them; a byte order mark is skipped.

    Args:
        text: JSON, as text or as UTF-8.

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
        value = _DECODER.decode(text.removeprefix("\ufeff"))
    except JsonError:
        raise
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8: byte {error.start} (0x{error.object[error.start]:02x})") from None
    except RecursionError:
        raise JsonError(JSON_DEPTH.exceeded()) from None
    except ValueError as error:
        problem = "an integer of more than 4,300 digits" if _INTEGER_DIGITS in str(error) else str(error)
        raise JsonError(problem) from None
    # Counting brackets is quick, and nearly every text has too few to be nested too deep.
    if text.count("[") + text.count("{") > JSON_DEPTH.value():
        _check_depth(value)
    return value


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
            raise JsonError(f"the key {ascii(key[:40])} is given twice in one object")
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

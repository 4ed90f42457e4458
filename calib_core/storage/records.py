"""Records: JSON objects of our own, whose fields have declared types.

A shape says what a value has to be:

* a type: `str`, `int`, `bool`, `dict`, `list`, or `float`, which takes whole numbers too and only finite
ones;
* a tuple of shapes: one of them; None in it allows null;
* `[shape]`: a list of such values;
* `{"name": shape, "other?": shape}`: an object with these fields, those with a question mark where they are
  there; other fields are left alone;
* `{...: shape}`: an object with such values under any names.
"""

from __future__ import annotations

import math
import os
from typing import Any

from calib_core.errors import DataFormatError, short
from calib_core.storage.files import read_json
from calib_core.storage.json_text import JsonError, parse_json

Shape = Any

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


def read_record(path: str | os.PathLike[str], shape: Shape, *, advice: str) -> Any:
    """Read a record of ours from a file.

    Args:
        path: a JSON file.
        shape: what it has to be; see above.
        advice: what to do where it isn't.

    Raises:
        DataFormatError: there is no such file, or it isn't of the shape; the field is named.
    """
    return check_record(read_json(path), shape, os.fspath(path), advice=advice)


def parse_record(data: str | bytes, shape: Shape, where: str, *, advice: str) -> Any:
    """A record of ours out of its text.

    Args:
        data: the text.
        shape: what it has to be; see above.
        where: what messages call it.
        advice: what to do where it isn't.

    Raises:
        DataFormatError: the text is not JSON, or not of the shape; the field is named.
    """
    try:
        value = parse_json(data, unicode_only=True)
    except JsonError as error:
        raise DataFormatError(f"{where}: not valid JSON ({error}); {advice}") from None
    return check_record(value, shape, where, advice=advice)


def check_record(value: Any, shape: Shape, where: str, *, advice: str) -> Any:
    """The value, if it is of the shape.

    Raises:
        DataFormatError: it isn't; the first field that is wrong is named.

    >>> check_record({"n": "3"}, {"n": int}, "data.json", advice="rewrite it")
    Traceback (most recent call last):
        ...
    calib_core.errors.DataFormatError: data.json: field n is '3' where a whole number is expected; rewrite it
    """
    if fault := _fault(value, shape, ""):
        raise DataFormatError(f"{where}: {fault}; {advice}")
    return value


def _fault(value: Any, shape: Shape, place: str) -> str:
    """What is wrong with a value, or an empty text."""
    if isinstance(shape, tuple):
        faults = [_fault(value, each, place) for each in shape]
        return "" if not all(faults) else faults[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _expected(value, "a list", place)
        return next((f for i, each in enumerate(value) if (f := _fault(each, shape[0], f"{place}[{i}]"))), "")
    if isinstance(shape, dict):
        return _object_fault(value, shape, place)
    return (
        ""
        if _is(value, shape)
        else _expected(value, _NAMES.get(shape, "null" if shape is None else "a list"), place)
    )


def _object_fault(value: Any, shape: dict[Any, Shape], place: str) -> str:
    if not isinstance(value, dict):
        return _expected(value, "an object", place)
    inside = f"{place}." if place else ""
    if ... in shape:
        return next(
            (f for name, each in value.items() if (f := _fault(each, shape[...], f"{inside}{name}"))), ""
        )
    for field, inner in shape.items():
        name = field.removesuffix("?")
        if name not in value:
            if name == field:
                return f"field {inside}{name} is missing"
        elif fault := _fault(value[name], inner, f"{inside}{name}"):
            return fault
    return ""


def _is(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < math.inf
    return isinstance(value, kind)


def _expected(value: Any, what: str, place: str) -> str:
    return f"{f'field {place[:200]}' if place else 'it'} is {short(value)} where {what} is expected"

"""Records: JSON objects of our own, whose fields have declared types.

A record is declared as a `TypedDict`: readers get it checked, type checkers know its fields, and its JSON
schema in docs/formats is made from it. `Annotated[int, "..."]` describes a field. Fields may have the types
`str`, `int`, `bool`, `dict`, `list`, `float` (which takes whole numbers too, and only finite ones), `None`,
unions and lists of these, `dict[str, ...]`, `Any` and other such `TypedDict`s. Fields that aren't declared
are kept.

Where a declaration isn't worth it, a shape says the same:

* a type, or a tuple of shapes: one of them; None in it allows null;
* `[shape]`: a list of such values;
* `{"name": shape, "other?": shape}`: an object with these fields, those with a question mark if they are
  there; other fields are left alone;
* `{...: shape}`: an object with such values under any names.
"""

from __future__ import annotations

import inspect
import math
import os
import types
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
    overload,
)

from calib_core.errors import DataFormatError, short
from calib_core.storage.files import read_json
from calib_core.storage.json_text import JsonError, parse_json

Shape = Any
R = TypeVar("R")

_SCHEMA_NAMES = {
    **{str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"},
    types.NoneType: "null",
}
_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


@overload
def read_record(path: str | os.PathLike[str], shape: type[R], *, advice: str) -> R: ...
@overload
def read_record(path: str | os.PathLike[str], shape: dict[Any, Shape], *, advice: str) -> Any: ...
def read_record(path: str | os.PathLike[str], shape: Shape, *, advice: str) -> Any:
    """Read a record of ours from a file.

    Args:
        path: a JSON file.
        shape: what it has to be: a `TypedDict`, or a shape; see above.
        advice: what to do where it isn't.

    Raises:
        DataFormatError: there is no such file, or it isn't of the shape; the field is named.
    """
    file = Path(path)
    if file.parent.is_dir() and not file.exists():
        raise DataFormatError(f"{path}: no such file; {advice}")
    return check_record(read_json(file), shape, os.fspath(path), advice=advice)


@overload
def parse_record(data: str | bytes, shape: type[R], where: str, *, advice: str) -> R: ...
@overload
def parse_record(data: str | bytes, shape: dict[Any, Shape], where: str, *, advice: str) -> Any: ...
def parse_record(data: str | bytes, shape: Shape, where: str, *, advice: str) -> Any:
    """A record of ours out of its text.

    Args:
        data: the text.
        shape: what it has to be: a `TypedDict`, or a shape; see above.
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


@overload
def check_record(value: Any, shape: type[R], where: str, *, advice: str) -> R: ...
@overload
def check_record(value: Any, shape: dict[Any, Shape], where: str, *, advice: str) -> Any: ...
def check_record(value: Any, shape: Shape, where: str, *, advice: str) -> Any:
    """The value, if it is of the shape.

    Raises:
        DataFormatError: it isn't; the first field that is wrong is named.

    >>> check_record({"n": "3"}, {"n": int}, "data.json", advice="rewrite it")
    Traceback (most recent call last):
        ...
    calib_core.errors.DataFormatError: data.json: field n is '3' where a whole number is expected; rewrite it
    """
    if fault := _fault(value, shape_of(shape), ""):
        raise DataFormatError(f"{where}: {fault}; {advice}")
    return value


def check_format(number: Any, known: int, where: str) -> None:
    """Refuse a record of a format that this version doesn't know.

    Raises:
        DataFormatError: it is another one.
    """
    if isinstance(number, bool) or number != known:
        raise DataFormatError(
            f"{where}: field format is {short(number)}, this version knows {known}; update calib-core"
        )


def shape_of(kind: Any) -> Shape:
    """The shape of a type: of a `TypedDict` and all that it consists of. Shapes stay as they are."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Annotated, Required, NotRequired):
        return shape_of(arguments[0])
    if is_typeddict(kind):
        return {
            name if _is_required(field) else f"{name}?": shape_of(field)
            for name, field in get_type_hints(kind, include_extras=True).items()
        }
    if origin in (Union, types.UnionType):
        return tuple(None if each is types.NoneType else shape_of(each) for each in arguments)
    if origin is list:
        return [shape_of(arguments[0])]
    if origin is dict:
        return {...: shape_of(arguments[1])}
    return kind


def schema_of(kind: Any) -> dict[str, Any]:  # noqa: PLR0911 - one for each kind of type
    """The JSON schema of a type that `shape_of` takes."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Required, NotRequired):
        return schema_of(arguments[0])
    if origin is Annotated:
        return {**schema_of(arguments[0]), "description": arguments[1]}
    if is_typeddict(kind):
        fields = get_type_hints(kind, include_extras=True)
        return {
            "title": kind.__name__,
            "type": "object",
            "description": inspect.getdoc(kind) or "",
            "properties": {name: schema_of(field) for name, field in fields.items()},
            "required": [name for name, field in fields.items() if _is_required(field)],
        }
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(each) for each in arguments]}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1])}
    return {} if kind is Any else {"type": _SCHEMA_NAMES[kind]}


def _is_required(field: Any) -> bool:
    # `__required_keys__` doesn't see what is written as text, as all annotations are in these files.
    return get_origin(field) is not NotRequired


def _fault(value: Any, shape: Shape, place: str) -> str:
    """What is wrong with a value, or an empty text."""
    if shape is Any:
        return ""
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

"""The part of CEL that KFP's compiler writes into conditions."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from typing import Any

from strict_backend.store import BackendError

_TOKEN = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|&&|\|\||!(?!=)|\btrue\b|\bfalse\b""")
_PYTHON = {"&&": " and ", "||": " or ", "!": " not ", "true": "True", "false": "False"}
_COMPARED = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CONVERTED = {"int": int, "double": float, "bool": bool, "string": str}


def holds(condition: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a task's condition is met by its inputs."""
    text = _TOKEN.sub(lambda found: found[1] or _PYTHON[found[0]], condition)
    result = _value(ast.parse(text.strip(), mode="eval").body, parameters)
    assert isinstance(result, bool), condition
    return result


def _value(node: ast.expr, parameters: Mapping[str, Any]) -> Any:  # noqa: PLR0911 - one for each form
    match node:
        case ast.Constant():
            return node.value
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, parameters)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, parameters)
        case ast.BoolOp(op=op, values=values):
            return (all if isinstance(op, ast.And) else any)(_value(one, parameters) for one in values)
        case ast.Call(func=ast.Name(id=name), args=[inner]):
            return _CONVERTED[name](_value(inner, parameters))
        case ast.Subscript(value=ast.Attribute(attr="parameter_values"), slice=ast.Constant(value=name)):
            if name not in parameters:
                raise BackendError(f"evaluation error: no such key: {name}")
            return parameters[name]
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _compared(type(op), _value(left, parameters), _value(right, parameters))
    raise AssertionError(f"not in KFP's conditions: {ast.unparse(node)}")


def _compared(op: type[ast.cmpop], left: Any, right: Any) -> bool:
    if _kind(left) != _kind(right):
        if op in (ast.Eq, ast.NotEq):
            return op is ast.NotEq
        raise BackendError("evaluation error: no such overload")
    return bool(_COMPARED[op](left, right))


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)

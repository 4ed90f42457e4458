"""Single values as files of every kind hold them: whole numbers, numbers, texts and ids.

A program that writes a file may turn a whole number into a float (pandas, where a value of the column is
missing), a digit string (CSV), a decimal or bytes. All of them mean the same here, in every reader.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np

from calib_core.data.texts import has_too_many_marks
from calib_core.errors import short
from calib_core.storage.limits import MARKS

_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,4000})(\.0*)?\s*", re.ASCII)

NOT_UNICODE = "holds half of a surrogate pair, which UTF-8 can't write; correct the text"


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: null, NaN, or a text of white space."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def whole_number(value: Any) -> int | None:
    """The whole number that a value holds, as an integer, float, decimal or text; None if it holds none.

    >>> [whole_number(value) for value in (3, 3.0, " 3 ", "3.0", 3.5, "three", True, None)]
    [3, 3, 3, 3, None, None, None, None]
    """
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value)
        return int(found[1]) if found else None
    if isinstance(value, float | np.floating):
        return int(value) if math.isfinite(value) and value == int(value) else None
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return int(value)
    return None


def number(value: Any) -> float | None:
    """The number that a value holds, NaN and infinities included; None if it is not one.

    An integer beyond the range of floats is an infinity.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | Decimal | np.integer | np.floating
    ):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write a text: half of a surrogate pair it can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_faults(value: Any) -> list[str]:
    """What is wrong with a value that should be a text with something in it."""
    if not isinstance(value, str):
        return [f"{kind(value)}; give a text"]
    if not value.strip():
        return ["empty; give a text"]
    if has_too_many_marks(value):
        return [f"{MARKS.exceeded()}"]
    return [] if is_unicode(value) else [NOT_UNICODE]


def id_text(value: Any) -> str:
    """An id as text, whole numbers without a decimal point; "" where there is none."""
    if is_missing(value):
        return ""
    whole = None if isinstance(value, str) else whole_number(value)
    return str(value).strip() if whole is None else str(whole)


def id_faults(value: Any) -> list[str]:
    """What is wrong with a row's id; none at all, a text and a whole number are all right."""
    if is_missing(value):
        return []
    if isinstance(value, str):
        return [] if is_unicode(value) else [NOT_UNICODE]
    whole = whole_number(value)
    if whole is None:
        return [f"{kind(value)}; give a text, a whole number or nothing"]
    return [] if abs(whole) < 10**4000 else [f"{short(value)}; give a shorter number"]


def kind(value: Any, wanted: str = "a text") -> str:
    """What a value of the wrong type is, for a message."""
    return "missing" if is_missing(value) else f"not {wanted} but {type(value).__name__}"

"""How two tables of predictions were made, and whether they can be compared."""

from __future__ import annotations

from typing import Any

from calib_core.errors import DataFormatError, short
from calib_core.predictions.table import Predictions


def check_same_protocol(a: Predictions, b: Predictions) -> None:
    """Refuse two tables that were made in different ways; only the adapter, and its temperature, may differ.

    Two tables without a protocol (both from elsewhere) pass: there is nothing to compare.

    Raises:
        DataFormatError: the protocols differ (the fields are named), or one table has none.
    """
    if a.protocol is None and b.protocol is None:
        return
    if a.protocol is None or b.protocol is None:
        which = "first" if a.protocol is None else "second"
        raise DataFormatError(
            f"the {which} predictions table has no protocol (file metadata 'calib.protocol') and the other "
            "has one, so that they can't be compared; score both with the same version and settings"
        )
    may_differ = {"adapter", "temperature"}
    if a.protocol.get("base_digest") and a.protocol.get("base_digest") == b.protocol.get("base_digest"):
        may_differ |= {"model", "revision"}  # the same weights, wherever they lie
    one, other = (_flat(table.protocol, may_differ) for table in (a, b))
    different = [
        f"{name}: {short(one.get(name))} and {short(other.get(name))}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
    if different:
        raise DataFormatError(
            "the two predictions tables were made in different ways and can't be compared ("
            + "; ".join(different)
            + "); score both with the same settings"
        )


def _flat(protocol: dict[str, Any] | None, left_out: set[str]) -> dict[str, Any]:
    """A protocol's fields but some, those of its parts by names like `prompt.form`."""
    flat: dict[str, Any] = {}
    for name, value in (protocol or {}).items():
        if name not in left_out:
            flat |= (
                {f"{name}.{key}": part for key, part in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
    return flat

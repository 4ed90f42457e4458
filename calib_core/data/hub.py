"""Rows out of data sets on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from calib_core.data.json_rows import rows_of
from calib_core.data.rows import Rows
from calib_core.data.source import HUB_PREFIX
from calib_core.errors import ConfigError, DataFormatError
from calib_core.storage.limits import ROWS


def read_hub_rows(source: str, fields: Collection[str] | None) -> Rows:
    """Rows of `hf://owner/name[/config][:split]`, downloaded or from the hub's cache on this machine.

    Raises:
        ConfigError: the package datasets is missing.
        DataFormatError: there is no such data set, or it can't be loaded.
    """
    name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataFormatError(f"{source}: not a hub data set; write {HUB_PREFIX}owner/name[/config][:split]")
    load = _load_dataset()
    try:
        loaded = load("/".join(parts[:2]), *parts[2:], split=split or None)
    except Exception as error:  # the hub's client raises whatever its many layers raise
        raise DataFormatError(
            f"{source}: can't be loaded ({type(error).__name__}: {error}); check name, configuration and "
            "split. Without a network, download a file of the data set elsewhere and give its path"
        ) from error
    if isinstance(loaded, dict):  # no split was asked for: all of them came
        if len(loaded) != 1:
            names = ", ".join(loaded)
            example = f"{source}:{next(iter(loaded), 'train')}"
            raise DataFormatError(f"{source}: has the splits {names}; add one, as in {example}")
        (loaded,) = loaded.values()
    ROWS.check(loaded.num_rows, source)
    return rows_of(source, loaded, fields)


def _load_dataset() -> Callable[..., Any]:
    try:
        from datasets import load_dataset  # noqa: PLC0415 (takes a second, and only hub ids need it)
    except ImportError:
        raise ConfigError(
            "reading from the hub needs datasets; install it with: pip install 'calib-core[train]'"
        ) from None
    return load_dataset

"""An adapter's folder as bytes: which of its files are loaded, and what they must be."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calib_core.errors import ConfigError
from calib_core.storage.files import read_json, sha256_file

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "calibration.json"
"""All that is read of an adapter's folder. `RECORD` is there where this project made the adapter."""


def has_temperature_alone(folder: Path) -> bool:
    """Whether a folder holds a temperature for a base model elsewhere, and no weights."""
    return (folder / RECORD).is_file() and not any(
        (folder / name).is_file() for name in ("config.json", CONFIG, WEIGHTS)
    )


def is_tied_to_base(folder: Path) -> bool:
    """Whether a folder holds what is loaded on top of a base model: an adapter, or a temperature alone."""
    return (folder / CONFIG).is_file() or has_temperature_alone(folder)


def files_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the files that are read when an adapter is loaded.

    Raises:
        ConfigError: the folder holds no adapter.
    """
    check_adapter(folder)
    digest = hashlib.sha256()
    for path in _loaded(folder):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def copy_adapter(folder: Path, target: Path) -> None:
    """Copy those files of an adapter that are read when it is loaded, and nothing else of the folder."""
    target.mkdir(parents=True, exist_ok=True)
    for path in _loaded(folder):
        shutil.copyfile(path, target / path.name)


def file_hashes(folder: Path) -> dict[str, str]:
    """What `calibration.json` says of the two files beside it: SHA-256 by name."""
    return {name: sha256_file(folder / name) for name in (CONFIG, WEIGHTS)}


def check_adapter(folder: Path) -> None:
    """Refuse a folder without an adapter's weights, or with others than its calibration.json was written for.

    Raises:
        ConfigError: what is missing or has changed.
    """
    if has_temperature_alone(folder):
        return
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder}: no {WEIGHTS}; pickled adapters (adapter_model.bin) are not loaded, so save the "
            "adapter again with a current peft"
        )
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: no {CONFIG}, so it holds no adapter; copy the adapter again")
    written = adapter_record(folder).get("files") or {}
    if changed := [name for name, found in file_hashes(folder).items() if written.get(name, found) != found]:
        raise ConfigError(
            f"{folder / changed[0]}: damaged, or not the file that {RECORD} was written for (its SHA-256 "
            "differs); copy the adapter again, or train it again"
        )


def lineage(record: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """What an adapter was made by, from its calibration.json: each training's adapter, method and data.

    Args:
        record: what `adapter_record` gives; the last training is its own, those before it are in its field
            `lineage`.
    """
    own = {name: record[name] for name in ("adapter", "method", "data") if name in record}
    return (*record.get("lineage", ()), own) if own else ()


def adapter_record(folder: Path) -> dict[str, Any]:
    """What `calibration.json` says; nothing if the adapter was made by another program.

    Raises:
        ConfigError: it isn't a JSON object.
    """
    path = folder / RECORD
    record = read_json(path) if path.is_file() else {}
    shapes = {"files": dict, "lineage": list, "data": dict, "prompt": dict}
    if not isinstance(record, dict) or not all(
        isinstance(record.get(name, shape()), shape) for name, shape in shapes.items()
    ):
        raise ConfigError(f"{path}: not the record of an adapter; copy the adapter again")
    return record


def _loaded(folder: Path) -> list[Path]:
    return [path for name in (CONFIG, WEIGHTS, RECORD) if (path := folder / name).is_file()]

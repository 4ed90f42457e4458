"""An adapter's folder as bytes: which of its files are loaded, and what they must be."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from calib_core.errors import ConfigError, short
from calib_core.models.records import FILE as RECORD
from calib_core.models.records import AdapterRecord, LineageRecord, read_adapter_record
from calib_core.storage.files import read_json, sha256_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT reads of an adapter's folder. `RECORD` is there too if this project made the adapter."""

MAX_RANK = 65_536
MAX_ENDLESS = 5
"""How many `*`, `+` and `{n,}` a pattern of module names may have."""
_MODULES = ("target_modules", "exclude_modules", "layers_pattern")
_BY_PATTERN = ("rank_pattern", "alpha_pattern")
_ENDLESS = re.compile(r"(?<!\\)(?:[*+]|\{\d*,\})")
_REPEATED_GROUP = re.compile(r"(?<!\\)\)(?:[*+]|\{)")


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
        DataFormatError: calibration.json isn't a record of an adapter.
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
    written = read_adapter_record(folder).get("files", {})
    if changed := [name for name, found in file_hashes(folder).items() if written.get(name, found) != found]:
        raise ConfigError(
            f"{folder / changed[0]}: damaged, or not the file that {RECORD} was written for (its SHA-256 "
            "differs); copy the adapter again, or train it again"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """An adapter's configuration, PEFT's own file, if it says what it can say and in bounded time and memory.

    Raises:
        ConfigError: it isn't an object, names modules by what is neither a list nor a pattern, by a pattern
            that may take forever to match, or gives a rank out of range.
    """
    path = folder / CONFIG
    settings = read_json(path)
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise ConfigError(f"{path}: not the configuration of an adapter; copy the adapter again")
    by_pattern = [value for name in _BY_PATTERN if isinstance(value := settings.get(name), dict)]
    for pattern in (
        *(settings.get(name) for name in _MODULES),
        *(key for keys in by_pattern for key in keys),
    ):
        _check_pattern(path, pattern)
    for rank in (settings.get("r"), *(value for values in by_pattern for value in values.values())):
        number = isinstance(rank, int | float) and not isinstance(rank, bool)
        if rank is not None and not (number and 0 <= rank <= MAX_RANK):
            raise ConfigError(
                f"{path}: the rank {short(rank)} is not a number up to {MAX_RANK}; copy it again"
            )
    return settings


def _check_pattern(path: Path, pattern: Any) -> None:
    """Refuse what names modules neither by a list of texts nor by a pattern that is quick to match."""
    if pattern is None or (isinstance(pattern, list) and all(isinstance(name, str) for name in pattern)):
        return
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{path}: modules are named by {short(pattern)}, which is neither a list of names nor a pattern "
            f"({error}); copy the adapter again"
        ) from None
    if _REPEATED_GROUP.search(pattern) or len(_ENDLESS.findall(pattern)) > MAX_ENDLESS:
        raise ConfigError(
            f"{path}: the pattern {short(pattern)} repeats a group, or more than {MAX_ENDLESS} times "
            "what has no end, and may take forever to match; name the modules in a list"
        )


def lineage(record: AdapterRecord) -> tuple[LineageRecord, ...]:
    """What an adapter was made by, from its calibration.json: each training's adapter, method and data.

    Args:
        record: what `read_adapter_record` gives; the last training is its own, those before it are in its
            field `lineage`.
    """
    own: LineageRecord = {}
    if "adapter" in record:
        own["adapter"] = record["adapter"]
    if "method" in record:
        own["method"] = record["method"]
    if "data" in record:
        own["data"] = record["data"]
    return (*record.get("lineage", ()), own) if own else ()


def _loaded(folder: Path) -> list[Path]:
    return [path for name in (CONFIG, WEIGHTS, RECORD) if (path := folder / name).is_file()]

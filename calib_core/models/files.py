"""A model's files before anything of them is loaded: where they are, if they are safe, and their hash."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import transformers
from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from calib_core.errors import ConfigError
from calib_core.models.names import HUB_ID, split_revision
from calib_core.storage.files import read_json, sha256_file
from calib_core.storage.uris import fetch, is_remote

HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")


@dataclass(frozen=True, kw_only=True)
class AdapterOrigin:
    """What the folder of an adapter, or of a temperature, says of its base model; "" where it doesn't say.

    Attributes:
        base: folder or hub id.
        revision: commit of a hub id.
        digest: `base_digest` of that model.
        temperature: what option logits are to be divided by.
    """

    base: str
    revision: str
    digest: str
    temperature: float


def resolve(model: str, revision: str = "") -> Path:
    """The folder of a model: the path itself, or the copy here of a bucket's folder or of the hub's snapshot.

    Args:
        model: a path, a bucket's URI, or a hub id, with or without `@revision`.
        revision: commit, tag or branch of a hub id that names none itself.

    Raises:
        ConfigError: there is no such folder, and the hub doesn't give it either.
        DataFormatError: nothing is at the bucket's URI, or a folder in part.
    """
    folder = fetch(model).expanduser()
    if folder.is_dir():
        if revision:
            raise ConfigError(
                f"revision: {revision!r} is for hub ids, and {model} is a folder; leave it empty"
            )
        return folder
    if is_remote(model):
        raise ConfigError(f"{model}: is a single object; give the folder that holds the model's files")
    if not HUB_ID.fullmatch(model):
        raise ConfigError(f"{model}: no such folder, and not a hub id (owner/name); check the path")
    name, named = split_revision(model)
    if named and revision not in ("", named):
        raise ConfigError(f"{model}: names a revision, and revision is {revision!r}; give one of the two")
    try:
        return Path(
            snapshot_download(
                name,
                revision=named or revision or None,
                allow_patterns=HUB_FILES,
                local_files_only=is_offline_mode(),  # older hub libraries forget it where a commit is named
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{model}: no such folder here, and the hub did not give it ({reason}); check the name, or give "
            "the path of a model folder (with HF_HUB_OFFLINE set, only models in the hub's cache can be had)"
        ) from error


def check_base(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted.

    Raises:
        ConfigError: it isn't a model folder, holds pickled weights only, or needs code of its own.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ConfigError(
            f"{folder}: no config.json, so it is no model folder; give the folder that holds it"
        )
    config = read_json(config_path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{config_path}: names no model_type; copy the model again")
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        why = "needs code of its own (auto_map), which is never run" if "auto_map" in config else "is unknown"
        raise ConfigError(
            f"{config_path}: model_type {config['model_type']!r} {why}; use a model whose architecture is "
            f"part of transformers {transformers.__version__}"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        found = (
            f"pickled ones ({', '.join(pickled[:3])}), which can run code when loaded" if pickled else "none"
        )
        raise ConfigError(
            f"{folder}: needs weights as *.safetensors and holds {found}; save the model again with "
            "save_pretrained of a current transformers"
        )
    return weights


def base_digest(folder: Path, weights: list[Path]) -> str:
    """SHA-256 over the names and contents of a model's config and safetensors files."""
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weights]:
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def has_temperature_alone(folder: Path) -> bool:
    """Whether a folder holds a temperature for a base model elsewhere, and no weights."""
    weights = ("config.json", "adapter_config.json")
    return (folder / "calibration.json").is_file() and not any((folder / name).is_file() for name in weights)


def adapter_origin(folder: Path) -> AdapterOrigin:
    """The base of an adapter: from calibration.json where it is there, else from PEFT's own file.

    Raises:
        ConfigError: the adapter's weights are not there as safetensors.
    """
    peft_config = {}
    if not has_temperature_alone(folder):
        if not (folder / "adapter_model.safetensors").is_file():
            raise ConfigError(
                f"{folder}: no adapter_model.safetensors; pickled adapters (adapter_model.bin) are not "
                "loaded, so save the adapter again with a current peft"
            )
        peft_config = read_json(folder / "adapter_config.json")
    ours = read_json(folder / "calibration.json") if (folder / "calibration.json").is_file() else {}
    base, revision = peft_config.get("base_model_name_or_path"), peft_config.get("revision")
    if ours.get("base"):
        base, revision = ours["base"], ours.get("base_revision")
    base = base or ""
    temperature = ours.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ConfigError(
            f"{folder / 'calibration.json'}: field 'temperature' is {temperature!r} where a number above 0 "
            "is expected; copy the adapter again"
        )
    return AdapterOrigin(
        base=base,
        revision="" if is_remote(base) or Path(base).is_dir() else (revision or ""),
        digest=ours.get("base_digest") or "",
        temperature=float(temperature),
    )

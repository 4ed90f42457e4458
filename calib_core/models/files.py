"""A model's files before anything of them is loaded: where they are, if they are safe, and their hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from calib_core.errors import ConfigError, short
from calib_core.models.adapters import check_adapter, has_temperature_alone, read_settings
from calib_core.models.names import HUB_ID, split_revision
from calib_core.models.records import AdapterRecord, read_adapter_record
from calib_core.storage.files import read_json, sha256_file
from calib_core.storage.uris import fetch, is_remote

HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm")
"""What a config may name to compute attention or experts with; anything else is a kernel from a hub."""
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")


@dataclass(frozen=True, kw_only=True)
class AdapterOrigin:
    """What an adapter's folder says of the base model that it was trained on; "" where it doesn't say.

    Attributes:
        base: folder or hub id.
        revision: commit of a hub id.
        digest: `Checkpoint.digest()` of that model.
        temperature: what option logits are to be divided by.
        record: all of calibration.json; empty where another program made the adapter.
    """

    base: str
    revision: str
    digest: str
    temperature: float
    record: AdapterRecord


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


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is loaded of a model folder, found once: everything that asks which files a model has asks this.

    Attributes:
        folder: the folder.
        config: its config.json.
        weights: the safetensors files that transformers loads, sorted; others in the folder don't count.
        index: the index that names them, where there is one.
    """

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    index: Path | None

    @property
    def quantization(self) -> str:
        """How the weights are quantized, such as `gptq`; "" where they are not."""
        method = self.config.get("quantization_config")
        return str(method.get("quant_method", "unknown")) if isinstance(method, dict) else ""

    def digest(self) -> str:
        """SHA-256 over the names and contents of all files of this checkpoint."""
        digest = hashlib.sha256()
        for path in [self.folder / "config.json", *([self.index] if self.index else []), *self.weights]:
            digest.update(f"{path.name} {sha256_file(path)}\n".encode())
        return digest.hexdigest()


def read_checkpoint(folder: Path) -> Checkpoint:
    """What transformers would load of a model folder: model.safetensors, else what the index names.

    Raises:
        ConfigError: it isn't a model folder, needs code of its own or a kernel from a hub, holds pickled
            weights only, or names files that aren't there, aren't safetensors, or lie outside the folder.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ConfigError(
            f"{folder}: no config.json, so it is no model folder; give the folder that holds it"
        )
    config = read_json(_inside(folder, "config.json"))
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{config_path}: names no model_type; copy the model again")
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        why = "needs code of its own (auto_map), which is never run" if "auto_map" in config else "is unknown"
        raise ConfigError(
            f"{config_path}: model_type {config['model_type']!r} {why}; use a model whose architecture is "
            f"part of transformers {transformers.__version__}"
        )
    _check_implementations(config_path, config)
    if config.get("transformers_weights"):
        raise ConfigError(
            f"{config_path}: field 'transformers_weights' names {short(config['transformers_weights'])} as "
            "the weights; rename that file to model.safetensors and remove the field"
        )
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return Checkpoint(
            folder=folder, config=config, weights=(_inside(folder, "model.safetensors"),), index=None
        )
    if index.exists():
        names = _named_by(_inside(folder, index.name))
        weights = tuple(_inside(folder, name) for name in names)
        return Checkpoint(folder=folder, config=config, weights=weights, index=index)
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = (
        f"pickled ones ({', '.join(pickled[:3])}), which can run code when loaded"
        if pickled
        else f"others ({', '.join(others[:3])}), which no index names"
        if others
        else "none"
    )
    raise ConfigError(
        f"{folder}: needs weights as model.safetensors, or several with their model.safetensors.index.json, "
        f"and holds {found}; save the model again with save_pretrained of a current transformers"
    )


def _check_implementations(path: Path, value: Any) -> None:
    """Refuse kernels that a config names: transformers would fetch machine code from a hub, and run it."""
    if isinstance(value, dict):
        for key, part in value.items():
            if str(key).endswith(("attn_implementation", "experts_implementation")):
                named = part.values() if isinstance(part, dict) else [part]
                for name in named:
                    if name is not None and name not in IMPLEMENTATIONS:
                        raise ConfigError(
                            f"{path}: field {short(key)} is {short(name)}, which is not one of "
                            f"{', '.join(IMPLEMENTATIONS)}; code from a hub is never run, so remove the field"
                        )
            else:
                _check_implementations(path, part)
    elif isinstance(value, list):
        for part in value:
            _check_implementations(path, part)


def _named_by(index: Path) -> list[str]:
    """The weight files that an index names, sorted."""
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise ConfigError(f"{index}: field 'weight_map' names no weights; copy the model again")
    wrong = [
        name
        for name in names.values()
        if not isinstance(name, str) or not name.endswith(".safetensors") or name != Path(name).name
    ]
    if wrong:
        raise ConfigError(
            f"{index}: field 'weight_map' names {short(wrong[0])}; only safetensors files of the folder "
            "itself are loaded, so save the model again with save_pretrained of a current transformers"
        )
    return sorted(set(names.values()))


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder; a link may lead on inside the folder, or to the blobs of a hub's cache."""
    path = folder / name
    target, home = path.resolve(), folder.resolve()
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(allowed) for allowed in homes):
        raise ConfigError(
            f"{path}: is a link to {target}, outside of the model's folder; copy the file itself there"
        )
    if not target.is_file():
        raise ConfigError(f"{path}: no such file, and the model needs it; copy the model again")
    return path


def adapter_origin(folder: Path) -> AdapterOrigin:
    """The base of an adapter: from calibration.json where it is there, else from PEFT's own file.

    Raises:
        ConfigError: the adapter's weights are not there as safetensors, or have changed since it was written.
        DataFormatError: calibration.json isn't a record of an adapter.
    """
    check_adapter(folder)
    peft_config = {} if has_temperature_alone(folder) else read_settings(folder)
    ours = read_adapter_record(folder)
    base, revision = peft_config.get("base_model_name_or_path"), peft_config.get("revision")
    if ours.get("base"):
        base, revision = ours["base"], ours.get("base_revision")
    base = base or ""
    temperature = ours.get("temperature", 1.0)
    if not temperature > 0:
        raise ConfigError(
            f"{folder / 'calibration.json'}: field temperature is {temperature!r} where a number above 0 "
            "is expected; copy the adapter again"
        )
    return AdapterOrigin(
        base=base,
        revision="" if is_remote(base) or Path(base).is_dir() else (revision or ""),
        digest=ours.get("base_digest") or "",
        temperature=float(temperature),
        record=ours,
    )

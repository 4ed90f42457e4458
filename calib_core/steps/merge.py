"""Merge: an adapter and its base as one model folder, with its temperature in the weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calib_core.errors import CalibError, ConfigError
from calib_core.runtime.progress import say
from calib_core.settings.checks import Config
from calib_core.settings.parameters import parameter
from calib_core.storage.files import check_output_folder, read_json, share, whole_folder, write_json
from calib_core.version import __version__

if TYPE_CHECKING:
    from calib_core.models.loading import LoadedModel

MERGED = "merged.json"


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Config):
    """Parameters of a merge."""

    GROUP = "model"

    temperature: Literal["fold", "leave"] = parameter(
        "fold",
        "`fold` (into the last norm, so that whatever serves the model divides its logits by it) or `leave` "
        "(for what serves the model to divide by).",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = parameter(
        "auto", "Of the weights that are written: `auto` (that of the base), `float32` or `bfloat16`."
    )
    base_model: str = parameter(
        "", "Folder, bucket URI or hub id of the base model, if the one that the adapter names has moved."
    )


def merge(config: MergeConfig, model: str, out: Path) -> dict[str, Any]:
    """Write an adapter and its base as one model folder.

    The sums are made in float32, whatever is written: at float32 a merged model's logits are the adapter's,
    divided by its temperature, within 1e-5 of the largest.

    Args:
        config: parameters of the merge.
        model: adapter folder, or folder with a base's temperature, by path or bucket URI, or hub id.
        out: model folder to write, atomically: weights as safetensors, config, tokenizer, and
            `merged.json`.

    Returns:
        What `merged.json` says: base, adapter, the temperature that went into the weights and the one that
        is left for serving (1 where there is none), dtype, seconds.

    Raises:
        ConfigError: `model` is neither, can't be loaded, or its temperature can't go into the weights.
        CalibError: what was written reads back otherwise.
    """
    from calib_core.models.folding import fold_temperature  # noqa: PLC0415 (torch is slow to import)
    from calib_core.models.loading import load_model  # noqa: PLC0415

    started_s = time.monotonic()
    check_output_folder(out, MERGED, inputs=(model,))
    loaded = load_model(model, base_model=config.base_model, dtype="float32")
    if loaded.adapter_files is None:
        raise ConfigError(f"{model}: is a whole model already; give an adapter, or a folder of `temperature`")
    origin, temperature = loaded.describe(), loaded.temperature
    stored = read_json(Path(loaded.model.config.name_or_path) / "config.json")
    if loaded.adapter_digest is not None:
        loaded.model = loaded.model.merge_and_unload()
    folded = temperature if config.temperature == "fold" else 1.0
    if folded != 1:
        fold_temperature(loaded.model, folded)
    dtype = _dtype(stored) if config.dtype == "auto" else config.dtype
    record = {
        **{name: origin[name] for name in ("base", "base_revision", "base_digest", "adapter")},
        "temperature_folded": folded,
        "temperature_left": temperature / folded,
        "dtype": dtype,
        "library_version": __version__,
    }
    _write(loaded, dtype, out, record)
    if temperature != folded:
        say(f"divide this model's logits by {temperature:.4g} where it is served")
    return {**record, "seconds": time.monotonic() - started_s}


def _dtype(stored: dict[str, Any]) -> Literal["float32", "bfloat16"]:
    """That of a checkpoint, by its config.json; half precision of another kind becomes bfloat16."""
    named = stored.get("dtype") or stored.get("torch_dtype") or "float32"
    return "float32" if named == "float32" else "bfloat16"


def _write(
    loaded: LoadedModel, dtype: Literal["float32", "bfloat16"], out: Path, record: dict[str, Any]
) -> None:
    """Write a model folder once it reads back as what it is written from.

    Raises:
        CalibError: it doesn't.
    """
    import torch  # noqa: PLC0415

    from calib_core.models.folding import logits_of, probe_ids  # noqa: PLC0415
    from calib_core.models.loading import load_model, tokenizer_digest  # noqa: PLC0415

    model, kind = loaded.model, getattr(torch, dtype)
    ids, tokenizer = probe_ids(model), tokenizer_digest(loaded.tokenizer)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(weights.to(kind))
    expected = logits_of(model, ids)  # of what is written, computed in float32 as below
    with whole_folder(out) as folder:
        model.to(kind).save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        loaded.model = model = None  # so that memory holds one of them at a time
        again = load_model(folder, dtype="float32")
        same = torch.allclose(
            logits_of(again.model, ids), expected, rtol=0, atol=float(expected.abs().max()) * 1e-5
        )
        if not same or tokenizer_digest(again.tokenizer) != tokenizer:
            raise CalibError(
                f"{out}: the model that was written reads back as another one; nothing is published. Please "
                "report this with the model's name and the version of transformers"
            )
        for path in folder.iterdir():
            share(path, 0o666)  # safetensors writes 0600
        write_json(folder / MERGED, record)

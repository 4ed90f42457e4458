"""The adapter that training changes: LoRA (Hu et al. 2022) on all linear layers, by PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from calib_core.errors import ConfigError
from calib_core.models.loading import LoadedModel, adapter_digest
from calib_core.models.memory import whole_tensors
from calib_core.runtime import processes
from calib_core.storage.files import share, whole_folder, write_json
from calib_core.training.config import AlignConfig, FinetuneConfig
from calib_core.version import __version__


def attach_lora(loaded: LoadedModel, config: AlignConfig | FinetuneConfig) -> LoadedModel:
    """Give a model a fresh LoRA on all its linear layers; an adapter that it has already is trained on.

    Raises:
        ConfigError: nothing is left to train.
    """
    model = loaded.model
    loaded.temperature = 1.0  # that of an adapter that is trained on holds no longer
    if not isinstance(model, PeftModel):
        torch.manual_seed(config.seed)
        lora = LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
        loaded.model = model
    if not trainable_parameters(model):
        raise ConfigError(
            f"{loaded.base}: no parameter of the model is trainable; load the adapter with trainable=True"
        )
    return loaded


def trainable_parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_adapter(loaded: LoadedModel, folder: Path, record: dict[str, Any]) -> None:
    """Write the adapter in PEFT's own format with `calibration.json` beside it, whole or not at all.

    Of several processes the first one writes, and the others wait.

    Args:
        loaded: the model that carries the adapter.
        folder: adapter folder to write.
        record: what to say in `calibration.json` beside the base model's identity and the adapter's digest.
    """
    description = {**loaded.describe(), "adapter": adapter_digest(loaded.model)}
    tensors = whole_tensors(trainable_parameters(loaded.model))

    def write() -> None:
        with whole_folder(folder) as temporary:
            loaded.model.peft_config["default"].base_model_name_or_path = loaded.base
            loaded.model.save_pretrained(
                temporary, selected_adapters=["default"], safe_serialization=True, state_dict=tensors
            )
            (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            for path in temporary.iterdir():
                share(path, 0o666)  # safetensors writes 0600
            write_json(
                temporary / "calibration.json", {**description, **record, "library_version": __version__}
            )

    processes.from_first(write)

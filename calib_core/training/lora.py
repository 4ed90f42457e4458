"""The adapter that training changes: LoRA (Hu et al. 2022) on all linear layers, by PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from calib_core.errors import CalibError, ConfigError
from calib_core.models.adapters import file_hashes
from calib_core.models.loading import LoadedModel, adapter_digest
from calib_core.models.memory import whole_tensors
from calib_core.models.records import AdapterRecord, write_adapter_record
from calib_core.runtime import processes
from calib_core.scoring.prompts import text_ids
from calib_core.storage.files import share, whole_folder
from calib_core.training.config import AlignConfig, FinetuneConfig
from calib_core.version import __version__


def attach_lora(loaded: LoadedModel, config: AlignConfig | FinetuneConfig) -> LoadedModel:
    """Give a model a fresh LoRA on the linear layers of its text part; one that it has is trained on.

    Raises:
        ConfigError: nothing is left to train, or the model has no layers that LoRA can adapt.
    """
    model = loaded.model
    loaded.temperature, loaded.adapter_files = 1.0, None  # an adapter that is trained on is another one
    if not isinstance(model, PeftModel):
        unfit = unfit_layers(loaded)
        torch.manual_seed(config.seed)
        lora = LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=lora_targets(model),
            exclude_modules=unfit or None,
            task_type="CAUSAL_LM",
        )
        try:
            model = get_peft_model(model, lora)
        except ValueError as error:
            raise ConfigError(
                f"{loaded.base}: a model of type {model.config.model_type} can't be adapted with LoRA "
                f"({error}); choose another model"
            ) from error
        loaded.model = model
    kind = model.peft_config["default"].peft_type
    if kind != "LORA":
        raise ConfigError(
            f"{loaded.base}: carries an adapter of type {getattr(kind, 'value', kind)}, and only LoRA is "
            "trained on; merge it into its base, and give the merged model"
        )
    if not trainable_parameters(model):
        raise ConfigError(
            f"{loaded.base}: no parameter of the model is trainable; load the adapter with trainable=True"
        )
    return loaded


def lora_targets(model: Any) -> str:
    """What LoRA adapts, in PEFT's terms: `all-linear`, or the text part where a model has others too.

    The vision or audio tower of an image+text checkpoint takes no part in a text, so it gets no gradient: an
    adapter on it would stay as it is, and several processes would wait for its gradients in vain.

    Raises:
        ConfigError: there is no linear layer to adapt.
    """
    place, head = _place(model), model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]
    inside = [name for name in linear if name.startswith(place)]
    if not inside:
        raise ConfigError(
            f"{model.config.model_type}: a model of this type has no linear layers that LoRA can adapt; "
            "choose another model"
        )
    if len(inside) == len(linear):
        return "all-linear"
    leaves = "|".join(sorted({re.escape(name.rpartition(".")[2]) for name in inside}))
    return rf"{re.escape(place)}.*\b({leaves})"


def unfit_layers(loaded: LoadedModel) -> list[str]:
    """Names of the linear layers that LoRA can't adapt, although they are linear.

    Some are never called in training, since the model multiplies with their weights itself (Gemma 3n, Jamba):
    an adapter on them would get no gradient. Others give more than their product (the router of Llama 4). A
    short text shows both. Experts, of which a text reaches a few, are left alone.
    """
    model = loaded.model
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and ".experts." not in name
    }
    called: set[torch.nn.Module] = set()

    def note(module: torch.nn.Module, given: object, output: object) -> None:
        if isinstance(output, Tensor):
            called.add(module)

    hooks = [module.register_forward_hook(note) for module in linear.values()]
    ids = text_ids(loaded.tokenizer, "Question: Which one?")
    was_training = model.training
    try:
        model.train()
        with torch.no_grad():
            model(input_ids=torch.tensor([ids], device=next(model.parameters()).device), use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    decoder = _place(model)
    return [name for name, module in linear.items() if name.startswith(decoder) and module not in called]


def _place(model: Any) -> str:
    """What the names of all modules of the text part begin with."""
    decoder = model.get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")


def trainable_parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_adapter(loaded: LoadedModel, folder: Path, record: AdapterRecord) -> None:
    """Write the adapter in PEFT's own format with `calibration.json` beside it, atomically.

    Of several processes the first one writes, and the others wait.

    Args:
        loaded: the model that carries the adapter.
        folder: adapter folder to write.
        record: what to say in `calibration.json` beside the base model's identity, the adapter's digest and
            those of its files, and the trainings that its input adapter had.
    """
    description = {**loaded.describe(), "adapter": adapter_digest(loaded.model)}
    tensors = whole_tensors(trainable_parameters(loaded.model))

    def write() -> None:
        with whole_folder(folder) as temporary:
            settings = loaded.model.peft_config["default"]
            settings.base_model_name_or_path = loaded.base
            if isinstance(settings.target_modules, set):  # whose order is another in each process
                settings.target_modules = sorted(settings.target_modules)
            loaded.model.save_pretrained(
                temporary,
                selected_adapters=["default"],
                safe_serialization=True,
                state_dict=tensors,
                save_embedding_layers=False,  # which the base has already
            )
            _check_saved(loaded, temporary, tensors)
            (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            for path in temporary.iterdir():
                share(path, 0o666)  # safetensors writes 0600
            about = {**description, "lineage": list(loaded.lineage), "files": file_hashes(temporary)}
            written = {**about, **record, "library_version": __version__}
            write_adapter_record(temporary, cast(AdapterRecord, written))

    processes.from_first(write)


def _check_saved(loaded: LoadedModel, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read an adapter back as PEFT does, before it gets its name: what is published must load as it was.

    Raises:
        CalibError: PEFT reads another adapter than the one that was trained.
    """
    expected = get_peft_model_state_dict(loaded.model, state_dict=dict(tensors), save_embedding_layers=False)
    read = load_peft_weights(str(folder), device="cpu")
    same = read.keys() == expected.keys() and all(
        torch.equal(read[name], tensor.detach().cpu()) for name, tensor in expected.items()
    )
    if not same or PeftConfig.from_pretrained(str(folder)).peft_type != "LORA":
        raise CalibError(
            f"{folder}: the adapter that was written is not the one that was trained; nothing is published. "
            "Please report this with the model's name and the version of peft"
        )

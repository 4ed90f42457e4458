"""Which files, modules and tensors a model has: asked once, and the same for loading, hashing and LoRA."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer, save_tiny_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3nTextConfig,
    JambaConfig,
    Llama4TextConfig,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from calib_core.errors import ConfigError
from calib_core.models.files import read_checkpoint
from calib_core.models.loading import load_model
from calib_core.training.config import FinetuneConfig
from calib_core.training.lora import attach_lora, save_adapter, trainable_parameters

IDS = torch.tensor([[0, 5, 9, 30, 31, 7]])
CONFIG = FinetuneConfig(lora_r=2, lora_dropout=0.0)


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_tiny_model(tmp_path / "base", num_hidden_layers=1)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def sharded(folder: Path) -> Path:
    """The model in two files and an index, as large models are published."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_only_the_files_that_are_loaded_count(folder) -> None:
    before = read_checkpoint(folder)
    save_file({"x": torch.zeros(9)}, folder / "consolidated.safetensors")
    after = read_checkpoint(folder)
    assert [path.name for path in after.weights] == ["model.safetensors"]
    assert after.digest() == before.digest() == load_model(folder, dtype="float32").base_digest


def test_the_index_and_all_that_it_names_are_hashed(folder) -> None:
    checkpoint = read_checkpoint(sharded(folder))
    assert [path.name[:11] for path in checkpoint.weights] == ["model-00001", "model-00002"]
    digests = {checkpoint.digest()}
    index = folder / "model.safetensors.index.json"
    change(index, metadata={"total_size": 1})
    digests.add(read_checkpoint(folder).digest())
    tensors = load_file(checkpoint.weights[1])
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, checkpoint.weights[1])
    digests.add(read_checkpoint(folder).digest())
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("../other/model.safetensors", "only safetensors files of the folder"),
        ("/etc/passwd", "only safetensors files of the folder"),
        ("pytorch_model.bin", "only safetensors files of the folder"),
        (3, "only safetensors files of the folder"),
        ("model-00009.safetensors", "no such file"),
    ],
)
def test_an_index_leads_nowhere_else(folder, named, message) -> None:
    index = sharded(folder) / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**weight_map, "lm_head.weight": named})
    with pytest.raises(ConfigError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_lead_nowhere_else(folder, tmp_path, name) -> None:
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="outside of the model's folder; copy the file itself there"):
        read_checkpoint(folder)


def test_links_within_a_hubs_cache_are_followed(folder, tmp_path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.parent.mkdir(parents=True)
    blobs.mkdir()
    shutil.copytree(folder, snapshot)
    for path in list(snapshot.iterdir()):
        shutil.move(path, blobs / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    assert read_checkpoint(snapshot).digest() == read_checkpoint(folder).digest()


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": "someone/kernel:attention"},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
        {"_attn_implementation": {"text_config": "someone/kernel"}},
        {"_experts_implementation": "someone/kernel"},
    ],
)
def test_kernels_of_a_hub_are_refused(folder, fields) -> None:
    change(folder / "config.json", **fields)
    with pytest.raises(ConfigError, match="code from a hub is never run, so remove the field"):
        read_checkpoint(folder)


def test_attention_that_transformers_brings_is_taken(folder) -> None:
    change(folder / "config.json", _attn_implementation="sdpa")
    assert read_checkpoint(folder).weights


def test_weights_under_another_name_are_refused(folder) -> None:
    change(folder / "config.json", transformers_weights="other.safetensors")
    with pytest.raises(ConfigError, match=r"rename that file to model\.safetensors"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ],
)
def test_a_quantized_checkpoint_that_cannot_be_read_is_named(folder, how, words) -> None:
    change(folder / "config.json", quantization_config=how)
    with pytest.raises(ConfigError, match=rf"is quantized \({words}\).*give the checkpoint that is not"):
        load_model(folder, dtype="float32")


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def gemma3(vocab: int) -> PretrainedConfig:
    text = {**SMALL, "vocab_size": vocab, "head_dim": 8, "sliding_window": 16}
    vision = {**SMALL, "image_size": 28, "patch_size": 14, "num_hidden_layers": 1}
    for name in ("num_key_value_heads", "max_position_embeddings"):
        vision.pop(name)
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )


MORE_FAMILIES = {
    "gemma3n": lambda vocab: Gemma3nTextConfig(
        **{**SMALL, "intermediate_size": [48] * 2},
        vocab_size=vocab,
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0] * 2,
        vocab_size_per_layer_input=vocab,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
    ),
    "llama4": lambda vocab: Llama4TextConfig(
        vocab_size=vocab, head_dim=8, num_local_experts=2, intermediate_size_mlp=48, **SMALL
    ),
    "jamba": lambda vocab: JambaConfig(
        vocab_size=vocab,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        num_experts=2,
        mamba_d_state=8,
        **SMALL,
    ),
    "gemma3-with-images": gemma3,
    "mixtral": lambda vocab: MixtralConfig(
        vocab_size=vocab, num_local_experts=4, num_experts_per_tok=2, **SMALL
    ),
    "qwen3-moe": lambda vocab: Qwen3MoeConfig(
        vocab_size=vocab, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8, **SMALL
    ),
    "deepseek-v3": lambda vocab: DeepseekV3Config(
        vocab_size=vocab,
        **{**SMALL, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
}


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.slow) if name == "gemma3n" else name for name in MORE_FAMILIES],
)
def test_families_of_other_shapes_train_and_load_again(family, tmp_path) -> None:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MORE_FAMILIES[family](len(tokenizer)), dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    loaded = attach_lora(load_model(tmp_path / "base", dtype="float32"), CONFIG)
    loaded.model.train()(input_ids=IDS, labels=IDS).loss.backward()
    parameters = trainable_parameters(loaded.model)
    assert not [name for name in parameters if "vision" in name]
    # B starts at zero, so that only it has a gradient at first: each layer of the text part gets one.
    missing = [name for name, p in parameters.items() if "lora_B" in name and p.grad is None]
    assert not [name for name in missing if "expert" not in name]
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = loaded.model.eval()(input_ids=IDS).logits
        save_adapter(loaded, tmp_path / "adapter", {})
        again = load_model(tmp_path / "adapter", dtype="float32")
        torch.testing.assert_close(again.model(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)


def save_tiny(config: PretrainedConfig, folder) -> None:
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def test_a_model_that_lora_cannot_adapt_is_refused_by_its_type(tmp_path) -> None:
    save_tiny(MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, state_size=8), tmp_path)
    with pytest.raises(ConfigError, match="a model of type mamba can't be adapted with LoRA"):
        attach_lora(load_model(tmp_path, dtype="float32"), CONFIG)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_an_encoder_is_no_causal_language_model(tmp_path, is_decoder) -> None:
    sizes = {name: size for name, size in SMALL.items() if name != "num_key_value_heads"}
    save_tiny(BertConfig(vocab_size=400, is_decoder=is_decoder, **sizes), tmp_path)
    if is_decoder:
        assert load_model(tmp_path, dtype="float32").model.config.model_type == "bert"
        return
    with pytest.raises(ConfigError, match="bert looks at the tokens that follow"):
        load_model(tmp_path, dtype="float32")


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
def test_an_adapter_from_elsewhere_is_trained_on_and_loads_again(folder, tmp_path, targets) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    get_peft_model(plain, lora).save_pretrained(tmp_path / "given")
    loaded = attach_lora(load_model(tmp_path / "given", dtype="float32", trainable=True), CONFIG)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainable_parameters(loaded.model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = loaded.model(input_ids=IDS).logits
    save_adapter(loaded, tmp_path / "trained", {})
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        by_us = load_model(tmp_path / "trained", dtype="float32").model(input_ids=IDS).logits
        by_peft = PeftModel.from_pretrained(base, tmp_path / "trained").eval()(input_ids=IDS).logits
    torch.testing.assert_close(by_us, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_peft, expected, rtol=0, atol=1e-5)


def given(folder: Path, to: Path, **settings: object) -> Path:
    """An adapter of another program on the model of a folder."""
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    get_peft_model(plain, LoraConfig(**settings)).save_pretrained(to)
    return to


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_an_adapter_that_replaces_a_module_is_trained_on_and_loads_again(folder, tmp_path, module) -> None:
    adapter = given(folder, tmp_path / "given", modules_to_save=[module])
    loaded = attach_lora(load_model(adapter, dtype="float32", trainable=True), CONFIG)
    with torch.no_grad():
        for parameter in trainable_parameters(loaded.model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = loaded.model(input_ids=IDS).logits
        save_adapter(loaded, tmp_path / "trained", {})
        again = load_model(tmp_path / "trained", dtype="float32").model(input_ids=IDS).logits
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)


def test_an_adapter_of_another_kind_is_refused_before_it_is_trained_on(folder, tmp_path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    get_peft_model(plain, settings).save_pretrained(tmp_path / "given")
    loaded = load_model(tmp_path / "given", dtype="float32", trainable=True)
    with pytest.raises(ConfigError, match="an adapter of type IA3, and only LoRA is trained on; merge it"):
        attach_lora(loaded, CONFIG)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": "((([a-z_.0-9]+)*)*)*q_projX"}, "may take forever to match; name the modules"),
        ({"target_modules": "(a|aa)+$"}, "may take forever to match"),
        ({"exclude_modules": ".*.*.*.*.*.*.*x"}, "may take forever to match"),
        ({"rank_pattern": {"(a+)+x": 4}}, "may take forever to match"),
        ({"target_modules": "((("}, "neither a list of names nor a pattern"),
        ({"target_modules": [1, 2]}, "neither a list of names nor a pattern"),
        ({"peft_type": "NEW"}, "this version of peft doesn't understand the adapter's configuration"),
        ({"peft_type": None}, "not the configuration of an adapter"),
        ({"r": -1}, "the rank -1 is not a number"),
        ({"r": 10**9}, "the rank 1000000000 is not a number up to 65536"),
        ({"r": "8"}, "the rank '8' is not a number"),
    ],
)
def test_settings_of_an_adapter_that_take_forever_are_refused(folder, tmp_path, fields, message) -> None:
    adapter = given(folder, tmp_path / "given")
    change(adapter / "adapter_config.json", **fields)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_model(adapter, dtype="float32")


def test_an_adapter_with_another_vocabulary_is_named_as_that(folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(rows + 3)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "given", save_embedding_layers=True)
    change(tmp_path / "given" / "adapter_config.json", base_model_name_or_path=str(folder))
    with pytest.raises(ConfigError, match=rf"a vocabulary of {rows + 3} tokens, and .* has {rows}; merge it"):
        load_model(tmp_path / "given", dtype="float32")


def test_an_adapter_with_embeddings_of_its_own_is_refused(folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "given", save_embedding_layers=True)
    with pytest.raises(ConfigError, match="brings embeddings that differ from those of"):
        load_model(tmp_path / "given", dtype="float32")

"""Merged weights: the adapter's logits, divided by its temperature, without an adapter or a temperature."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from tiny import save_tiny_model
from torch import nn

from calib_core.errors import ConfigError
from calib_core.models.folding import fold_temperature, logits_of, probe_ids
from calib_core.models.loading import load_model
from calib_core.steps.merge import MergeConfig, merge
from calib_core.training.config import FinetuneConfig
from calib_core.training.lora import attach_lora, save_adapter, trainable_parameters

LORA = FinetuneConfig(lora_r=4, lora_alpha=8)
T = 1.7


def make_adapter(folder, family, *, temperature=T, **changes):
    """An adapter with a temperature on a tiny model of a family; and the logits that they give together."""
    save_tiny_model(folder / "base", family, **changes)
    loaded = attach_lora(load_model(folder / "base", dtype="float32"), LORA)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(loaded.model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(loaded, folder / "adapter", {"method": "cft", "temperature": temperature})
    return logits_of(loaded.model.eval(), probe_ids(loaded.model)) / temperature


def difference(folder, expected):
    """Largest difference of a merged model's logits from what was expected, as a share of the largest."""
    merged = load_model(folder, dtype="float32")
    assert merged.temperature == 1
    assert merged.adapter_digest is None
    found = logits_of(merged.model, probe_ids(merged.model))
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "qwen3", "gemma", "gpt2", "phi"])
def test_merged_logits_are_the_adapters_divided_by_its_temperature(family, tmp_path):
    expected = make_adapter(tmp_path, family)
    record = merge(MergeConfig(), str(tmp_path / "adapter"), tmp_path / "merged")
    assert difference(tmp_path / "merged", expected) < 1e-5
    assert (record["temperature_folded"], record["temperature_left"]) == (T, 1.0)
    assert record["dtype"] == "float32"
    written = json.loads((tmp_path / "merged" / "merged.json").read_text())
    assert written.items() <= record.items()
    tied = family in ("llama-tied", "qwen2", "gemma", "gpt2")
    model = load_model(tmp_path / "merged", dtype="float32").model
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_a_soft_cap_after_the_head_is_refused_and_can_be_left_to_serving(tied, tmp_path):
    expected = make_adapter(tmp_path, "gemma2", tie_word_embeddings=tied)
    with pytest.raises(ConfigError, match=r"soft cap .*final_logit_softcapping.*temperature=leave"):
        merge(MergeConfig(), str(tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    record = merge(MergeConfig(temperature="leave"), str(tmp_path / "adapter"), tmp_path / "merged")
    assert (record["temperature_folded"], record["temperature_left"]) == (1.0, T)
    assert difference(tmp_path / "merged", expected * T) < 1e-5


def test_a_base_with_a_temperature_alone_is_folded_too(tmp_path):
    save_tiny_model(tmp_path / "base", "llama")
    base = load_model(tmp_path / "base", dtype="float32")
    (tmp_path / "scaled").mkdir()
    record = {"method": "temperature", **base.describe(), "temperature": T}
    (tmp_path / "scaled" / "calibration.json").write_text(json.dumps(record))
    expected = logits_of(base.model, probe_ids(base.model)) / T
    merge(MergeConfig(), str(tmp_path / "scaled"), tmp_path / "merged")
    assert difference(tmp_path / "merged", expected) < 1e-5


def test_weights_are_written_in_the_type_that_is_asked_for(tmp_path):
    expected = make_adapter(tmp_path, "llama")
    merge(MergeConfig(dtype="bfloat16"), str(tmp_path / "adapter"), tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert 1e-4 < difference(tmp_path / "merged", expected) < 0.05


def test_a_whole_model_is_refused(tmp_path):
    save_tiny_model(tmp_path / "base", "llama")
    with pytest.raises(ConfigError, match="is a whole model already"):
        merge(MergeConfig(), str(tmp_path / "base"), tmp_path / "merged")


class Bent(nn.Module):
    """A model whose logits aren't linear in its last norm, without saying so in its config."""

    def __init__(self, *, normed):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.norm = nn.LayerNorm(8) if normed else nn.Identity()
        self.config = SimpleNamespace(get_text_config=SimpleNamespace)
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.head(self.norm(self.embedding(input_ids))).tanh())


def test_a_model_that_no_weights_can_scale_is_refused_and_left_as_it_was():
    model = Bent(normed=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"don't follow its last norm \(LayerNorm\)"):
        fold_temperature(model, T)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="no norm with weights"):
        fold_temperature(Bent(normed=False), T)

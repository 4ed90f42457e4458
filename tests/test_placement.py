"""How a model lies in memory: the arithmetic of an 8B model, and refusals of machines that are too small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_steps import EVALUATE, FINETUNE, prepared
from tiny import save_tiny_model

from calib_core.errors import ConfigError
from calib_core.models import loading as models
from calib_core.models import memory as placement
from calib_core.models.loading import load_model
from calib_core.models.memory import as_placed, memory_bytes, quantization, weights_bytes, whole_tensor
from calib_core.scoring.forward import answer_logits, evaluating
from calib_core.steps.evaluate import evaluate
from calib_core.steps.finetune import rcft
from calib_core.storage.files import read_json
from calib_core.training.lora import attach_lora, trainable_parameters

LAYER = {
    "q_proj": (4096, 4096),
    "k_proj": (1024, 4096),
    "v_proj": (1024, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096),
    "up_proj": (14336, 4096),
    "down_proj": (4096, 14336),
    "input_layernorm": (4096,),
    "post_attention_layernorm": (4096,),
}
LLAMA_8B = {
    "model.embed_tokens.weight": (128256, 4096),
    **{f"model.layers.{i}.{name}.weight": shape for i in range(32) for name, shape in LAYER.items()},
    "model.norm.weight": (4096,),
    "lm_head.weight": (128256, 4096),
}
PARAMETERS = 8_030_261_248  # as the model's card counts them


def test_weights_are_as_many_bytes_as_counted_by_hand() -> None:
    assert weights_bytes(LLAMA_8B, "bfloat16", "whole", 1) == 2 * PARAMETERS
    assert weights_bytes(LLAMA_8B, "float32", "whole", 4) == 4 * PARAMETERS
    assert weights_bytes(LLAMA_8B, "bfloat16", "fsdp", 4) == PARAMETERS / 2
    linear = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096)
    four_bit = linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * (PARAMETERS - linear)
    assert weights_bytes(LLAMA_8B, "bfloat16", "qlora", 1) == pytest.approx(four_bit, rel=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_machine_that_is_too_small_is_refused_before_loading(folder, monkeypatch, share) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    weights = 4 * sum(p.numel() for p in load_model(folder, dtype="float32").model.parameters())
    monkeypatch.setattr(placement, "memory_bytes", lambda: share * weights)
    if share > 1:
        load_model(folder, dtype="float32")
        return
    monkeypatch.setattr(models, "_load_weights", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=r"need 0.0 GB in float32 .*use a larger machine") as caught:
        load_model(folder, dtype="float32")
    assert caught.value.exit_code == 2


def test_a_containers_limit_counts(tmp_path) -> None:
    machine = memory_bytes(tmp_path / "no-such-file")
    assert machine > 2**28
    for text, expected in (("max\n", machine), ("268435456\n", 2**28), (str(2**60), machine)):
        (tmp_path / "memory.max").write_text(text)
        assert memory_bytes(tmp_path / "memory.max") == expected


def test_four_bits_without_bitsandbytes_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'calib-core\[qlora\]'"):
        quantization("float32")


def test_scoring_leaves_the_gradients_of_a_model_in_four_bits_as_they_were(tmp_path) -> None:
    # Sides of whole 64s: others no fused kernel takes, so that it could not come between.
    folder = save_tiny_model(tmp_path, hidden_size=64, intermediate_size=64, head_dim=16)
    config = replace(FINETUNE, lora_dropout=0.0)
    loaded = attach_lora(load_model(folder, dtype="float32", placement="qlora"), config)
    ids = [[5, 6, 7, 8], [9, 10]]

    def gradients() -> torch.Tensor:
        loaded.model.train()
        loaded.model.zero_grad()
        answer_logits(loaded.model, ids).logsumexp(dim=1).sum().backward()
        return torch.cat([p.grad.flatten() for p in trainable_parameters(loaded.model).values()])

    for name, parameter in trainable_parameters(loaded.model).items():
        if "lora_B" in name:  # zero in a fresh adapter, which makes the gradients of the other half zero
            torch.nn.init.normal_(parameter, std=0.1)
    before = gradients()
    with evaluating(loaded.model):
        answer_logits(loaded.model, ids)
    assert before.norm() > 0
    torch.testing.assert_close(gradients(), before)


@pytest.mark.slow
def test_a_model_in_four_bits_trains(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    config, data = replace(FINETUNE, placement="qlora"), prepared(tmp_path, pairs=False)
    record = rcft(config, str(folder), data, tmp_path / "adapter")
    assert record["history"][-1]["nll_nats"] < 10
    written = read_json(tmp_path / "adapter" / "calibration.json")
    assert written["dtype"] == "nf4"
    # The adapter is evaluated, and served, on the base model as it is stored.
    whole = load_model(tmp_path / "adapter")
    assert (whole.base_digest, whole.adapter_digest) == (written["base_digest"], written["adapter"])
    evaluation = evaluate(EVALUATE, str(tmp_path / "adapter"), data, tmp_path / "evaluation")
    assert evaluation["model"]["adapter"] == written["adapter"]


def test_a_whole_tensor_stays_as_it_is() -> None:
    tensor = torch.arange(3.0)
    assert whole_tensor(tensor) is tensor
    assert as_placed(tensor, torch.zeros(3)) is tensor

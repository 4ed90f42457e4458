"""How much memory a model takes in scoring, in fine-tuning and in DPO: from its number of parameters.

The figures are for the defaults of this package (LoRA of rank 128 on all linear layers with float32 weights,
no gradient checkpointing), on one device. `model_bytes` says what is added up; `benchmarks/step_memory.py`
measures it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from calib_core.errors import ConfigError

Work = Literal["scoring", "lora", "dpo"]
WORKS: tuple[Work, ...] = ("scoring", "lora", "dpo")
DTYPES = {"bfloat16": 2, "float32": 4}
"""Bytes of one number."""

QUESTION_TOKENS = 256
"""Length that a question, and each side of a pair, is counted with; most are shorter."""

STEP_TOKENS: dict[Work, int] = {"scoring": 4096, "lora": 8 * QUESTION_TOKENS, "dpo": 2 * 8 * QUESTION_TOKENS}
"""Padded tokens in one pass at the default batch sizes: `batch_tokens` of scoring, 8 questions, 8 pairs."""

LORA_RANK = 128
MARGIN = 1.2
"""Over the sum, for what the allocator holds back and for buffers that are not counted one by one."""

GIB = 2**30
HOST_GIB = {"cpu": 2, "gpu": 6}
"""What a process takes before a model is loaded: Python, torch and the libraries; CUDA's beside a GPU."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a decoder with grouped attention and a gated MLP.

    Attributes:
        parameters: all of them.
        layers: transformer layers.
        hidden: width of the residual stream.
        kv: width of the keys (and of the values).
        mlp: inner width of the MLP.
        vocabulary: rows of the embedding.
    """

    parameters: float
    layers: int
    hidden: int
    kv: int
    mlp: int
    vocabulary: int


SHAPES = (
    Shape(parameters=0.14e9, layers=30, hidden=576, kv=192, mlp=1536, vocabulary=49152),
    Shape(parameters=0.5e9, layers=24, hidden=896, kv=128, mlp=4864, vocabulary=151936),
    Shape(parameters=1.6e9, layers=28, hidden=1536, kv=256, mlp=8960, vocabulary=151936),
    Shape(parameters=3.3e9, layers=28, hidden=3072, kv=1024, mlp=8192, vocabulary=128256),
    Shape(parameters=8.5e9, layers=32, hidden=4096, kv=1024, mlp=14336, vocabulary=128256),
    Shape(parameters=15e9, layers=48, hidden=5120, kv=1024, mlp=13824, vocabulary=152064),
    Shape(parameters=33e9, layers=64, hidden=5120, kv=1024, mlp=27648, vocabulary=152064),
    Shape(parameters=73e9, layers=80, hidden=8192, kv=1024, mlp=29568, vocabulary=152064),
)
"""Shapes of open models by size; a model counts as the first that is not smaller than it."""


def parse_parameters(text: str) -> int:
    """Number of parameters from text such as `135M`, `1.5B` or `8000000000`.

    Raises:
        ConfigError: the text is none of these, or the model is larger than all that the table has.

    >>> parse_parameters("1.5B")
    1500000000
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    number = round(float(found[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[found[2]]) if found else 0
    if not number:
        raise ConfigError(f"model_parameters is {text!r}; give a number of parameters such as 135M or 8B")
    _shape(number)
    return number


def model_bytes(parameters: int, work: Work, dtype: str, *, tokens: int | None = None) -> int:
    """Memory that a model and one step of `work` take on the device that computes it, in bytes.

    Weights are `parameters` numbers of `dtype`, `b` bytes each; where those are not float32 the output head
    is copied to it. Per token of a pass

    * scoring keeps one layer's values, `b * (6 hidden + 3 mlp)`;
    * training keeps those of all layers until the backward pass: the base model's own
      (`b * (9 hidden + 3 kv + 4 mlp)`: projections before and after rotation, keys and values as all heads
      see them, the attention's output, two normed states, the MLP's four), float32 states in the two norms
      (`16 hidden`), and for LoRA the inputs of seven linear layers (`6 hidden + mlp` numbers) in float32
      after dropout with its mask (8 bytes), before dropout where the base is not float32 (4 more), and the
      seven products of its rank (`28 rank`);
    * training has float32 logits at every position (RCFT, DPO), with log-softmax and gradients
      `16 vocabulary`.

    LoRA's own weights are float32 with a gradient and AdamW's two moments: 16 bytes each.

    Args:
        parameters: the model's.
        work: what is done with it.
        dtype: `bfloat16` or `float32`, of the base model's weights.
        tokens: padded tokens in one pass; by default those of `STEP_TOKENS`.
    """
    n_tokens = STEP_TOKENS[work] if tokens is None else tokens
    fixed, per_token = _fixed_and_per_token(parameters, work, dtype)
    return round(MARGIN * (fixed + n_tokens * per_token))


def fitting_questions(parameters: int, work: Work, dtype: str, *, device_bytes: int) -> int:
    """How many questions (or pairs) of `QUESTION_TOKENS` one step can have on a device; 0 if none fits."""
    fixed, per_token = _fixed_and_per_token(parameters, work, dtype)
    sequences = 2 if work == "dpo" else 1
    return max(0, int((device_bytes / MARGIN - fixed) // (per_token * sequences * QUESTION_TOKENS)))


def _fixed_and_per_token(parameters: int, work: Work, dtype: str) -> tuple[float, float]:
    shape, size = _shape(parameters), DTYPES[dtype]
    head = 0 if size == 4 else 4 * shape.hidden * shape.vocabulary
    fixed = parameters * size + head
    if work == "scoring":
        return fixed, size * (6 * shape.hidden + 3 * shape.mlp)
    base = size * (9 * shape.hidden + 3 * shape.kv + 4 * shape.mlp) + 16 * shape.hidden
    lora = (6 * shape.hidden + shape.mlp) * (8 if size == 4 else 12) + 28 * LORA_RANK
    return fixed + 16 * lora_parameters(parameters), shape.layers * (base + lora) + 16 * shape.vocabulary


def lora_parameters(parameters: int) -> int:
    """Parameters of a LoRA of rank 128 on all linear layers: rank times inputs plus outputs of each."""
    shape = _shape(parameters)
    query_and_output = 2 * (2 * shape.hidden)
    key_and_value = 2 * (shape.hidden + shape.kv)
    mlp = 3 * (shape.hidden + shape.mlp)
    return LORA_RANK * shape.layers * (query_and_output + key_and_value + mlp)


def host_bytes(parameters: int, work: Work, dtype: str, *, gpu: bool, tokens: int | None = None) -> int:
    """Memory that a task needs beside a GPU, or all of it where there is none, in bytes.

    Beside a GPU the weights pass through the host once while they are loaded, and a checkpoint holds LoRA's
    weights, the best ones and AdamW's moments: 16 bytes each. On a CPU in float32 the file, which mostly is
    bfloat16, stays mapped.

    Args:
        parameters: the model's.
        work: what is done with it.
        dtype: `bfloat16` or `float32`, of the base model's weights.
        gpu: whether a GPU computes it.
        tokens: padded tokens in one pass; by default those of `STEP_TOKENS`.
    """
    if not gpu:
        mapped = 2 * parameters if dtype == "float32" else 0
        return HOST_GIB["cpu"] * GIB + mapped + model_bytes(parameters, work, dtype, tokens=tokens)
    checkpoint = 0 if work == "scoring" else 16 * lora_parameters(parameters)
    return HOST_GIB["gpu"] * GIB + round(MARGIN * (parameters * DTYPES[dtype] + checkpoint))


def _shape(parameters: int) -> Shape:
    for shape in SHAPES:
        if parameters <= shape.parameters:
            return shape
    largest = f"{SHAPES[-1].parameters / 1e9:g}B"
    raise ConfigError(
        f"model_parameters is {parameters / 1e9:g}B, more than the {largest} that memory is known for; "
        "leave it out, and set memory and accelerator yourself"
    )

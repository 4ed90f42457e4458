"""How a base model lies in memory: a copy in each process, spread over them (FSDP), or in 4 bits (QLoRA).

The engines are torch's `fully_shard` (Zhao et al. 2023, *PyTorch FSDP*) and bitsandbytes (Dettmers et al.
2023, *QLoRA*). Only the adapter is trained, in each case.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from calib_core.errors import ConfigError
from calib_core.runtime import processes

Placement = Literal["whole", "fsdp", "qlora"]

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0}
NF4_BYTES = 0.516
"""Of a weight in a linear layer: 4 bits, and the scale of 64 weights in 8 bits with its own of 256 in 32."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def spread(model: nn.Module) -> None:
    """Spread a model's tensors over all processes, in place, one decoder layer after the other.

    The model comes on the CPU, and each process moves its part to its own device. Forward and backward passes
    collect a layer's weights when they reach it, so that all processes must make the same number of them.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (processes.count(),))
    for layer in _decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_spread(model: nn.Module) -> bool:
    """Whether a model's tensors are spread over the processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor as it is, or collected from the processes that it is spread over; all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`whole_tensor` of each, detached."""
    return {name: whole_tensor(tensor.detach()) for name, tensor in tensors.items()}


def as_placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of another, and spread as that one is."""
    tensor = tensor.to(like.device)
    return (
        distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
    )


def quantization(dtype: str) -> Any:
    """Settings with which transformers loads a base model in 4 bits (NF4, double quantization).

    Args:
        dtype: that the 4-bit layers compute in, `float32` or `bfloat16`.

    Raises:
        ConfigError: bitsandbytes, which does the work, is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "placement is 'qlora', and the bitsandbytes package is not installed; run "
            "`pip install 'calib-core[qlora]'`, or give placement 'whole' or 'fsdp'"
        )
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def keep_differentiable(model: nn.Module) -> None:
    """Have bitsandbytes leave a model's 4-bit weights in the layout that has gradients.

    On CPUs with AVX512-BF16 the first pass in evaluation mode would put them into that of a fused kernel, for
    good. The kernel has no backward pass, so that later training steps would get wrong gradients and no
    error; and it takes no layer whose sides are not multiples of 32 and 64. Elsewhere this changes nothing.
    """
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):  # of bitsandbytes' Linear4bit
            module.support_avx512bf16_for_cpu = False


def weights_bytes(shapes: Mapping[str, Sequence[int]], dtype: str, placement: Placement, n: int) -> int:
    """Bytes that each of `n` processes needs for a base model's weights alone.

    Args:
        shapes: of the stored tensors, by name.
        dtype: that they are loaded in, `float32` or `bfloat16`.
        placement: of the model.
        n: processes, over all machines.
    """
    each = WEIGHT_BYTES[dtype]
    total = 0.0
    for name, shape in shapes.items():
        quantized = placement == "qlora" and len(shape) == 2 and not _is_embedding(name)
        total += math.prod(shape) * (NF4_BYTES if quantized else each)
    return math.ceil(total / n if placement == "fsdp" else total)


def check_fits(folder: Path, weights: Sequence[Path], dtype: str, placement: Placement) -> None:
    """Refuse a model whose weights alone are more than this machine's memory, before it is loaded.

    Raises:
        ConfigError: they are; the message says by how much and what to do.
    """
    shapes: dict[str, Sequence[int]] = {}
    try:
        for path in weights:
            with safe_open(path, framework="pt") as stored:
                shapes |= {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):  # loading says what is wrong with the file
        return
    needed = weights_bytes(shapes, dtype, placement, processes.count())
    if torch.cuda.is_available():
        where, present = (
            "a GPU here",
            torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
        )
    else:
        where, present = "memory here", memory_bytes()
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # all processes of a machine share it
    if needed > present:
        raise ConfigError(
            f"{folder}: the weights need {needed / 1e9:.1f} GB in {dtype} (placement {placement!r}), and "
            f"{where} has {present / 1e9:.1f} GB; use a larger machine, dtype bfloat16, or placement 'fsdp' "
            "on more processes or 'qlora' (docs/distributed.md has the arithmetic)"
        )


def memory_bytes(limit: Path = CGROUP_LIMIT) -> int:
    """Main memory that this process may use: the machine's, or its container's limit where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(limit.read_text()))
    except (OSError, ValueError):  # no such file; or "max"
        return machine


def _is_embedding(name: str) -> bool:
    return any(part in name for part in ("embed", "wte", "lm_head"))


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    if not lists:
        raise ConfigError(
            "placement is 'fsdp', and this model has no list of layers; give 'whole' or 'qlora'"
        )
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))

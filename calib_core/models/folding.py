"""A temperature folded into a model's weights, so that whatever serves it divides its logits.

The last norm's weights are divided, for the head that follows is linear; it may share its weights with the
embedding, so that these stay. What the head adds (a bias) is divided too. Nothing else may come after it: a
soft cap bends the logits, and the model is refused. Whether it held is measured, whatever the architecture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from calib_core.errors import ConfigError

PROBE_TOKENS = 16

_EXACT = 1e-5
"""Largest error of a folded model's float32 logits, as a share of the largest logit."""

_REMEDY = "leave it out of the weights (`temperature=leave`), and divide the logits where the model is served"


@torch.no_grad()
def fold_temperature(model: Any, temperature: float) -> None:
    """Divide a model's logits by a temperature, by its weights alone.

    Args:
        model: causal language model in float32, without an adapter; its last norm, and its head's bias where
            it has one, are changed in place.
        temperature: above 0.

    Raises:
        ConfigError: the model's logits aren't linear in its last norm (a soft cap), or it has no such norm
            with weights; the model is as it was then.
    """
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise ConfigError(
            "a soft cap follows this model's head (`final_logit_softcapping` in its config.json), so that no "
            f"weights divide its logits by {temperature:.3g}; {_REMEDY}"
        )
    ids = probe_ids(model)
    norm, before = _last_norm(model, ids)
    head = model.get_output_embeddings()
    parts = [norm.weight, *(part.bias for part in (norm, head) if getattr(part, "bias", None) is not None)]
    kept = [part.detach().clone() for part in parts]
    # Gemma's norm multiplies by 1 + weight: which kind it is shows in the logits.
    for offset in (0.0, 1.0):
        norm.weight.copy_((kept[0] + offset) / temperature - offset)
        for part, values in zip(parts[1:], kept[1:], strict=True):
            part.copy_(values / temperature)
        error = (logits_of(model, ids) * temperature - before).abs().max() / before.abs().max()
        if error <= _EXACT:
            return
    for part, values in zip(parts, kept, strict=True):
        part.copy_(values)
    raise ConfigError(f"this model's logits don't follow its last norm ({type(norm).__name__}); {_REMEDY}")


def probe_ids(model: Any) -> Tensor:
    """Token ids to compare two models by, (1, T), int64; the same for the same vocabulary."""
    generator = torch.Generator().manual_seed(0)
    rows = len(model.get_input_embeddings().weight)
    return torch.randint(rows, (1, PROBE_TOKENS), generator=generator).to(model.device)


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Logits of a model for token ids, (1, T, V), float32."""
    return torch.as_tensor(model(input_ids=ids, use_cache=False).logits).float()


def _last_norm(model: Any, ids: Tensor) -> tuple[Any, Tensor]:
    """The module with weights of its own whose output the head reads, and the model's logits.

    Raises:
        ConfigError: there is none.
    """
    outputs: list[tuple[int, nn.Module]] = []
    read: list[int] = []
    head = model.get_output_embeddings()
    hooks = [head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].data_ptr()))]
    for module in model.modules():
        if not list(module.children()) and getattr(getattr(module, "weight", None), "ndim", 0) == 1:
            hooks.append(
                module.register_forward_hook(
                    lambda module, _, output: outputs.append((output.data_ptr(), module))
                )
            )
    try:
        logits = logits_of(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    # Memory is used again in a pass: the last one that wrote there counts.
    norm = next((module for where, module in reversed(outputs) if where in read), None)
    if norm is None:
        raise ConfigError(f"no norm with weights stands before this model's head; {_REMEDY}")
    return norm, logits

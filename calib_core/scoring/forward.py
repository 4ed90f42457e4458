"""Forward passes that compute next-token logits where they are asked for, and nowhere else.

Sequences are padded on the right. A causal model never looks to the right of a position, so padding can't
change what is read, positions are those of the unpadded sequence, and no attention mask has to be built.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from calib_core.models.memory import is_spread

HEAD_CHUNK_BYTES = 64 * 1024 * 1024
"""How much of the output head is turned to float32 at a time."""

MIN_PREFIX_TOKENS = 64
"""A shared beginning shorter than this isn't worth a cache."""

PREFIX_SHARE = 4
"""A cached token counts as a quarter of a computed one when batches are filled: it only takes memory."""

WORTHWHILE_TOKENS = 1024
"""A batch of so many tokens keeps the processor busy: beyond it less padding is worth more than more rows."""

MAX_PADDING = 0.1
"""Share of padding in a row at which a batch that is large enough ends."""


@dataclass(frozen=True)
class Prefix:
    """The common beginning of several sequences, already computed.

    Attributes:
        n_tokens: its length.
        cache: keys and values of one row, as transformers keeps them.
    """

    n_tokens: int
    cache: DynamicCache


def answer_logits(
    model: nn.Module, input_ids: Sequence[Sequence[int]], *, prefix: Prefix | None = None
) -> Tensor:
    """Next-token logits after each sequence, float32 (B, V), in one forward; differentiable.

    The output head sees one position per sequence and is multiplied in float32. What the model family does
    with its logits afterwards (soft-capping, scaling) stays the model's own code, on those float32 values.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        input_ids: B token sequences of any lengths from 1; what follows the prefix where one is given.
        prefix: what stands before every sequence.
    """
    rows = torch.arange(len(input_ids))
    last = torch.tensor([len(ids) - 1 for ids in input_ids])
    return logits_at(model, padded(input_ids), rows, last, prefix=prefix)


def logits_at(
    model: nn.Module,
    ids: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    prefix: Prefix | None = None,
    exact: Tensor | None = None,
) -> Tensor:
    """Next-token logits at some positions of a padded batch, float32 (P, V); differentiable.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        ids: int64 (B, T), padded on the right with any valid id.
        rows: int64 (P,), the wanted positions' rows.
        columns: int64 (P,), their columns.
        prefix: what stands before every row.
        exact: int64 (E,), those of the P positions whose logits are multiplied in float32, where the others'
            are in the model's dtype, which is faster; all of them if left out.
    """
    where = next(model.parameters()).device
    ids, rows, columns = ids.to(where), rows.to(where), columns.to(where)
    past = prefix.n_tokens if prefix else 0
    extra: dict[str, Any] = {"use_cache": False}
    if prefix:
        cache = copy.deepcopy(prefix.cache)  # the forward appends to it
        cache.batch_repeat_interleave(len(ids))
        extra = {"use_cache": True, "past_key_values": cache}
    # Ones throughout: the real mask would only cost time, see above.
    mask = torch.ones(len(ids), past + ids.shape[1], dtype=torch.int64, device=where)
    with _head_at(model, rows, columns, None if exact is None else exact.to(where)) as seen:
        logits = model(input_ids=ids, attention_mask=mask, **extra).logits
    # A family that doesn't call its output embedding as a module gives logits at every position.
    found: Tensor = (logits[0] if seen else logits[rows, columns]).float()
    return found


def sequence_logits(model: nn.Module, input_ids: Sequence[Sequence[int]]) -> Tensor:
    """Next-token logits at every position, (B, T, V) in the model's dtype, right-padded; differentiable.

    For losses over whole sequences only: it is large.
    """
    ids = padded(input_ids).to(next(model.parameters()).device)
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits


def shared_prefix(model: nn.Module, input_ids: Sequence[Sequence[int]]) -> Prefix | None:
    """The longest common beginning of the sequences, computed once; None if it doesn't pay or isn't safe.

    It is found token by token in the sequences' own ids, so no merge across its end can change them. At least
    one token of each sequence stays outside of it. Only full attention is cached (no sliding windows, no
    state spaces).
    """
    if len(input_ids) < 2:
        return None
    ordered = sorted(tuple(ids) for ids in input_ids)
    first, final = ordered[0], ordered[-1]  # what these two share, all between them share
    shared = next((i for i, (a, b) in enumerate(zip(first, final, strict=False)) if a != b), len(first))
    shared = min(shared, min(map(len, input_ids)) - 1)
    if shared < MIN_PREFIX_TOKENS:
        return None
    ids = torch.tensor([list(first[:shared])], device=next(model.parameters()).device)
    with _head_at(model, torch.tensor([0]), torch.tensor([0])):
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    return Prefix(shared, cache)


def padded(input_ids: Sequence[Sequence[int]]) -> Tensor:
    """Sequences as int64 (B, T), filled up on the right with their own first token (any valid id does)."""
    length = max(len(ids) for ids in input_ids)
    return torch.tensor([[*ids, *[ids[0]] * (length - len(ids))] for ids in input_ids])


def token_batches(lengths: Sequence[int], batch_tokens: int, *, prefix_tokens: int = 0) -> list[list[int]]:
    """Row numbers in batches of at most `batch_tokens` padded tokens, longest first; a longer row goes alone.

    >>> token_batches([3, 9, 4, 4], 12)
    [[1], [2, 3, 0]]
    """
    batches: list[list[int]] = []
    longest = room = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        enough = batches and len(batches[-1]) * longest >= WORTHWHILE_TOKENS
        if room == 0 or (enough and lengths[row] < (1 - MAX_PADDING) * longest):
            batches.append([])
            longest = lengths[row]
            room = max(1, batch_tokens // max(longest, (prefix_tokens + longest) // PREFIX_SHARE))
        batches[-1].append(row)
        room -= 1
    return batches


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and every module back in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        # What FSDP collects within inference mode it can't use again in training.
        with torch.no_grad() if is_spread(model) else torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _head_at(
    model: nn.Module, rows: Tensor, columns: Tensor, exact: Tensor | None = None
) -> Iterator[list[bool]]:
    """Within the block the output head computes (1, P, V) at P positions, in float32 if it is plain linear.

    Of these positions `exact` names those that are multiplied in float32, where it isn't all.

    Yields:
        A list that is empty until the head was called.
    """
    inner: Any = getattr(model, "module", model)  # what a data-parallel wrapper holds
    head: nn.Module = inner.get_output_embeddings()
    seen: list[bool] = []

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(True)
        return (args[0][rows, columns].unsqueeze(0), *args[1:])

    def in_float32(module: nn.Linear, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if exact is None:
            return _linear_float32(args[0], module.weight, module.bias)
        logits = output.float()
        logits[:, exact] = _linear_float32(args[0][:, exact], module.weight, module.bias)
        return logits

    hooks = [head.register_forward_pre_hook(pick)]
    if type(head) is nn.Linear and head.weight.dtype != torch.float32:
        # An adapted or quantized head computes by itself, in its own dtype.
        hooks.append(head.register_forward_hook(in_float32))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _linear_float32(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer in float32, some rows of its weight at a time, so that no whole copy of it is made."""
    rows = max(1, HEAD_CHUNK_BYTES // (4 * weight.shape[1]))
    with torch.autocast(hidden.device.type, enabled=False):
        parts = [F.linear(hidden.float(), part.float()) for part in weight.split(rows)]
        logits = torch.cat(parts, dim=-1)
        return logits if bias is None else logits + bias.float()

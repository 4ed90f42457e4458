"""Questions to option logits: one forward per question, whole-vocabulary logits at the answer position only.

Prompts are padded on the right. A causal model never looks to the right of the position that is read, so the padding
can't change it, positions are those of the unpadded prompt, and no attention mask has to be built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib_core.errors import DataFormatError
from calib_core.models import LoadedModel, adapter_digest, tokenizer_digest
from calib_core.predictions import Predictions
from calib_core.progress import Progress
from calib_core.prompts import PromptEncoder
from calib_core.questions import Question
from calib_core.version import __version__

HEAD_CHUNK_BYTES = 64 * 1024 * 1024
"""How much of the output head is turned to float32 at a time."""

NAMED = 20
"""How many questions an error names; all are counted."""


@dataclass(frozen=True, kw_only=True)
class EncodedQuestions:
    """Questions as token ids: made once, scored as often as a training loop wants.

    Attributes:
        questions: the N questions.
        input_ids: each question's prompt; all at least one token, none longer than the model's context.
        letter_ids: each question's option letters after that prompt.
        prompt: `PromptEncoder.describe()`.
        tokenizer: digest of the tokenizer.
    """

    questions: tuple[Question, ...]
    input_ids: tuple[tuple[int, ...], ...]
    letter_ids: tuple[tuple[int, ...], ...]
    prompt: dict[str, Any]
    tokenizer: str

    def __len__(self) -> int:
        return len(self.questions)


def encode_questions(
    questions: Sequence[Question], encoder: PromptEncoder, *, context_tokens: int
) -> EncodedQuestions:
    """Tokenise every question, before anything is computed.

    Args:
        questions: any numbers of options, 2 to 26, mixed.
        encoder: prompt form and tokenizer.
        context_tokens: the longest prompt that the model takes.

    Raises:
        DataFormatError: a prompt is longer than the context (nothing is ever cut).
        TokenizationError: a letter is not one token after the prompt.
    """
    input_ids = tuple(tuple(encoder.encode(question)) for question in questions)
    long = [i for i, ids in enumerate(input_ids) if len(ids) > context_tokens]
    if long:
        named = ", ".join(f"{questions[i].id!r} ({len(input_ids[i])} tokens)" for i in long[:NAMED])
        raise DataFormatError(
            f"{len(long)} of {len(questions)} questions are longer than the model's context of {context_tokens} tokens: "
            f"{named}; shorten or remove them, use fewer worked examples, or a model with a longer context"
        )
    return EncodedQuestions(
        questions=tuple(questions),
        input_ids=input_ids,
        letter_ids=tuple(tuple(encoder.letter_ids(len(question.choices))) for question in questions),
        prompt=encoder.describe(),
        tokenizer=tokenizer_digest(encoder.tokenizer),
    )


def score(
    loaded: LoadedModel,
    questions: Sequence[Question],
    encoder: PromptEncoder,
    *,
    batch_tokens: int = 4096,
    description: str = "scoring",
) -> Predictions:
    """Option logits of every question, in the order given.

    Args:
        loaded: the model.
        questions: any numbers of options, 2 to 26, mixed.
        encoder: prompt form and tokenizer.
        batch_tokens: padded tokens in one forward; a longer question goes alone.
        description: what the progress line calls this.

    Returns:
        Predictions with logits float32 (N, K) at the answer position, letter mass float32 (N,), and the protocol.

    Raises:
        DataFormatError: a question is longer than the model's context, or its logits are not finite.
        TokenizationError: a letter is not one token after the prompt.
    """
    encoded = encode_questions(questions, encoder, context_tokens=loaded.context_tokens)
    return score_encoded(loaded, encoded, batch_tokens=batch_tokens, description=description)


def score_encoded(
    loaded: LoadedModel, encoded: EncodedQuestions, *, batch_tokens: int = 4096, description: str = "scoring"
) -> Predictions:
    """`score` for questions that are tokenised already; the model is left in the mode that it was found in."""
    n, widest = len(encoded), max((len(ids) for ids in encoded.letter_ids), default=2)
    logits = np.full((n, widest), -np.inf, dtype=np.float32)
    mass = np.zeros(n, dtype=np.float32)
    with evaluating(loaded.model), Progress(description, total=n, unit="questions") as progress:
        for rows in token_batches([len(ids) for ids in encoded.input_ids], batch_tokens):
            vocabulary = answer_logits(loaded.model, [encoded.input_ids[row] for row in rows])
            totals = vocabulary.logsumexp(dim=1)
            for row, of_row, total in zip(rows, vocabulary, totals, strict=True):
                letters = of_row[list(encoded.letter_ids[row])]
                logits[row, : len(letters)] = letters.cpu().numpy()
                mass[row] = (letters.logsumexp(dim=0) - total).exp().clamp(max=1.0).item()
            progress.advance(len(rows))
    _check_finite(encoded, logits, mass)
    return Predictions(
        ids=tuple(question.id for question in encoded.questions),
        labels=np.array([question.answer for question in encoded.questions], dtype=np.int64),
        logits=logits,
        n_options=np.array([len(ids) for ids in encoded.letter_ids], dtype=np.int64),
        letter_mass=mass,
        subjects=tuple(question.subject for question in encoded.questions),
        protocol=protocol(loaded, encoded),
    )


def protocol(loaded: LoadedModel, encoded: EncodedQuestions) -> dict[str, Any]:
    """How these predictions are made, JSON-able; the adapter is digested as it is now, trained further or not."""
    model = loaded.model
    return {
        "model": loaded.base,
        "revision": loaded.base_revision,
        "base_digest": loaded.base_digest,
        "adapter": adapter_digest(model) if hasattr(model, "peft_config") else None,
        "tokenizer": encoded.tokenizer,
        "prompt": encoded.prompt,
        "shots": encoded.prompt["shots"],
        "dtype": loaded.dtype,
        "library_version": __version__,
    }


def answer_logits(model: nn.Module, input_ids: Sequence[Sequence[int]]) -> Tensor:
    """Next-token logits after each sequence, float32 (B, V), in one forward; differentiable.

    The output head sees one position per sequence and is multiplied in float32. What the model family does with its
    logits afterwards (soft-capping, scaling) stays the model's own code, and so works on those float32 values.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        input_ids: B token sequences of any lengths.
    """
    where = next(model.parameters()).device
    last = torch.tensor([len(ids) - 1 for ids in input_ids], device=where)
    rows = torch.arange(len(last), device=where)
    logits = _forward(model, input_ids, (rows, last))
    # A family that doesn't pass through its output embedding's module gives logits at every position.
    picked = logits[:, 0] if logits.shape[1] == 1 else logits[rows, last]
    return picked.float()


def sequence_logits(model: nn.Module, input_ids: Sequence[Sequence[int]]) -> Tensor:
    """Next-token logits at every position, float32 (B, T, V), in one forward; differentiable; as `answer_logits`."""
    return _forward(model, input_ids, None).float()


def _forward(model: nn.Module, input_ids: Sequence[Sequence[int]], position: tuple[Tensor, Tensor] | None) -> Tensor:
    inner = getattr(model, "module", model)  # a wrapper for several processes has no embeddings of its own
    ids = padded(input_ids).to(next(model.parameters()).device)
    with _head_at(inner.get_output_embeddings(), position):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def padded(input_ids: Sequence[Sequence[int]]) -> Tensor:
    """Sequences as int64 (B, T), filled up on the right with their own first token (any valid id does)."""
    length = max(len(ids) for ids in input_ids)
    return torch.tensor([[*ids, *[ids[0]] * (length - len(ids))] for ids in input_ids])


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches of at most `batch_tokens` padded tokens, longest first.

    >>> token_batches([3, 9, 4, 4], 12)
    [[1], [2, 3, 0]]
    """
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if room < 1:
            batches.append([])
            room = max(1, batch_tokens // lengths[row])  # the first of a batch is its longest
        batches[-1].append(row)
        room -= 1
    return batches


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and every module back in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _head_at(head: nn.Module, position: tuple[Tensor, Tensor] | None) -> Iterator[None]:
    """Within the block, `head` computes one position per row (or all), in float32 where it is a plain linear layer."""

    def pick(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][position].unsqueeze(1), *args[1:])

    def exact(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _linear_float32(args[0], module)

    hooks = [head.register_forward_pre_hook(pick)] if position is not None else []
    if type(head) is nn.Linear and head.weight.dtype != torch.float32:
        hooks.append(head.register_forward_hook(exact))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _linear_float32(hidden: Tensor, head: nn.Module) -> Tensor:
    """A linear layer in float32, some rows of its weight at a time so that no second copy of the head is made."""
    weight, bias = head.weight, head.bias
    rows = max(1, HEAD_CHUNK_BYTES // (4 * weight.shape[1]))
    parts = [
        F.linear(
            hidden.float(), part.float(), None if bias is None else bias[i * rows : (i + 1) * rows].float()
        )
        for i, part in enumerate(weight.split(rows))
    ]
    return torch.cat(parts, dim=-1)


def _check_finite(encoded: EncodedQuestions, logits: np.ndarray, mass: np.ndarray) -> None:
    own = np.arange(logits.shape[1]) < np.array([len(ids) for ids in encoded.letter_ids])[:, None]
    bad = np.flatnonzero((own & ~np.isfinite(logits)).any(axis=1) | ~np.isfinite(mass))
    if len(bad):
        named = ", ".join(repr(encoded.questions[row].id) for row in bad[:NAMED])
        raise DataFormatError(
            f"the model's logits are not finite for {len(bad)} of {len(encoded)} questions: {named}; check the model's "
            "weights, or score with dtype float32"
        )

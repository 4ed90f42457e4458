"""Questions to option logits: what a model says of each question, as a table of numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calib_core.data.questions import Question
from calib_core.errors import NAMED, DataFormatError
from calib_core.models.loading import LoadedModel, adapter_digest, tokenizer_digest
from calib_core.predictions.table import Predictions
from calib_core.predictions.temperature import apply_temperature
from calib_core.runtime import interrupts, processes
from calib_core.runtime.progress import Progress
from calib_core.scoring.forward import (
    answer_logits,
    evaluating,
    shared_prefix,
    token_batches,
)
from calib_core.scoring.prompts import PromptEncoder
from calib_core.version import __version__


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

    def subset(self, rows: Sequence[int]) -> EncodedQuestions:
        """The questions at `rows`, in that order."""
        return replace(
            self,
            questions=tuple(self.questions[row] for row in rows),
            input_ids=tuple(self.input_ids[row] for row in rows),
            letter_ids=tuple(self.letter_ids[row] for row in rows),
        )


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
            f"{len(long)} of {len(questions)} questions are longer than the model's context of "
            f"{context_tokens} tokens: "
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
        Predictions with logits float32 (N, K) at the answer position, letter mass float32 (N,), and the
        protocol.

    Raises:
        DataFormatError: a question is longer than the model's context, or its logits are not finite.
        TokenizationError: a letter is not one token after the prompt.
    """
    encoded = encode_questions(questions, encoder, context_tokens=loaded.context_tokens)
    return score_encoded(loaded, encoded, batch_tokens=batch_tokens, description=description)


def score_encoded(
    loaded: LoadedModel,
    encoded: EncodedQuestions,
    *,
    batch_tokens: int = 4096,
    part: tuple[int, int] = (0, 1),
    description: str = "scoring",
) -> Predictions:
    """`score` for questions that are tokenised already; the model's mode (training or not) is kept.

    With `part` (i, n) every n-th batch is computed, from the i-th on, and only its questions are returned, in
    the order given. The n parts hold every question once, with the very bits that one call for all of them
    gives: the last bits of a question's logits depend on what else is in its batch and on the tokens of the
    shared prefix, so whole batches of the one plan are dealt out, and never single questions.

    Of several processes each computes a part of the batches, and all return the whole, to the last bit the
    table that one process makes.
    """
    n, widest = len(encoded), max((len(ids) for ids in encoded.letter_ids), default=2)
    logits = np.full((n, widest), -np.inf, dtype=np.float32)
    mass = np.zeros(n, dtype=np.float32)
    with evaluating(loaded.model):
        prefix = shared_prefix(loaded.model, encoded.input_ids)
        shared = prefix.n_tokens if prefix else 0
        rest = [ids[shared:] for ids in encoded.input_ids]
        planned = token_batches([len(ids) for ids in rest], batch_tokens, prefix_tokens=shared)
        planned = planned[part[0] :: part[1]]
        batches = processes.even_share(planned)
        with Progress(description, total=sum(map(len, batches)), unit="questions") as progress:
            for rows in batches:
                vocabulary = answer_logits(loaded.model, [rest[row] for row in rows], prefix=prefix)
                letters = _letters(vocabulary, [encoded.letter_ids[row] for row in rows])
                logits[rows, : letters.shape[1]] = letters.cpu().numpy()
                share = (letters.logsumexp(dim=1) - vocabulary.logsumexp(dim=1)).exp()
                mass[rows] = share.clamp(max=1.0).cpu().numpy()
                progress.advance(len(rows))
                interrupts.check()
    # What another process computed is still -inf and 0 here; NaN stays NaN.
    logits = np.maximum.reduce(processes.gather(logits))
    mass = np.maximum.reduce(processes.gather(mass))
    if part != (0, 1):
        scored = sorted(row for rows in planned for row in rows)
        encoded, logits, mass = encoded.subset(scored), logits[scored], mass[scored]
    _check_finite(encoded, logits, mass)
    table = Predictions(
        ids=tuple(question.id for question in encoded.questions),
        labels=np.array([question.answer for question in encoded.questions], dtype=np.int64),
        logits=logits,
        n_options=np.array([len(ids) for ids in encoded.letter_ids], dtype=np.int64),
        letter_mass=mass,
        subjects=tuple(question.subject for question in encoded.questions),
        protocol=protocol(loaded, encoded),
    )
    return table if loaded.temperature == 1 else apply_temperature(table, loaded.temperature)


def protocol(loaded: LoadedModel, encoded: EncodedQuestions) -> dict[str, Any]:
    """How these predictions are made, JSON-able; the adapter is digested as it is now, not as loaded.

    A `temperature` in it is one that the table's logits have been divided by already.
    """
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
        **({} if loaded.temperature == 1 else {"temperature": loaded.temperature}),
        "library_version": __version__,
    }


def _letters(vocabulary: Tensor, letter_ids: Sequence[Sequence[int]]) -> Tensor:
    """Each row's letters out of (B, V), as (B, K) with -inf beyond a row's own."""
    widest = max(len(ids) for ids in letter_ids)
    index = torch.tensor([[*ids, *[0] * (widest - len(ids))] for ids in letter_ids], device=vocabulary.device)
    count = torch.tensor([len(ids) for ids in letter_ids], device=vocabulary.device)
    beyond = torch.arange(widest, device=vocabulary.device) >= count[:, None]
    return vocabulary.gather(1, index).masked_fill(beyond, -torch.inf)


def _check_finite(encoded: EncodedQuestions, logits: np.ndarray, mass: np.ndarray) -> None:
    own = np.arange(logits.shape[1]) < np.array([len(ids) for ids in encoded.letter_ids])[:, None]
    bad = np.flatnonzero((own & ~np.isfinite(logits)).any(axis=1) | ~np.isfinite(mass))
    if len(bad):
        named = ", ".join(repr(encoded.questions[row].id) for row in bad[:NAMED])
        raise DataFormatError(
            f"the model's logits are not finite for {len(bad)} of {len(encoded)} questions: {named}; check "
            "the model's weights, or score with dtype float32"
        )

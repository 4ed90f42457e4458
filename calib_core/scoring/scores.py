"""Questions to option logits, preference pairs to log-probabilities: what a model says, as numpy records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib_core.data.preferences import Preference
from calib_core.data.questions import Question
from calib_core.errors import DataFormatError, NotEnoughDataError
from calib_core.metrics.bootstrap import Interval
from calib_core.metrics.selective import wilson
from calib_core.models.loading import LoadedModel, adapter_digest, tokenizer_digest
from calib_core.predictions.table import Predictions
from calib_core.runtime import processes
from calib_core.runtime.progress import Progress
from calib_core.scoring.forward import (
    answer_logits,
    evaluating,
    logits_at,
    padded,
    sequence_logits,
    shared_prefix,
    token_batches,
)
from calib_core.scoring.prompts import PromptEncoder, leading_bos, text_ids
from calib_core.version import __version__

__all__ = [
    "EncodedPreference",
    "EncodedQuestions",
    "PreferenceLogprobs",
    "answer_logits",
    "encode_preference",
    "encode_preferences",
    "encode_questions",
    "encoded_logprobs",
    "protocol",
    "score",
    "score_encoded",
    "sequence_logits",
    "sequence_logprobs",
    "win_rate",
]

PAIR_LOGITS_BYTES = 256 * 1024 * 1024
"""Bound on the whole-vocabulary logits, float32, of one batch of preference pairs."""

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
    # What another process computed is still -inf and 0 here; NaN stays NaN.
    logits = np.maximum.reduce(processes.gather(logits))
    mass = np.maximum.reduce(processes.gather(mass))
    if part != (0, 1):
        scored = sorted(row for rows in planned for row in rows)
        encoded, logits, mass = encoded.subset(scored), logits[scored], mass[scored]
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
    """How these predictions are made, JSON-able; the adapter is digested as it is now, not as loaded."""
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


@dataclass(frozen=True, kw_only=True)
class EncodedPreference:
    """A preference pair as token ids; the prompt begins with BOS where the tokenizer puts one."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferenceLogprobs:
    """Log-probabilities of N preference pairs' continuations given their prompts.

    Attributes:
        ids: the pairs' ids.
        chosen_nats: float64 (N,), sum over the tokens of log p(token | what stands before), natural log.
        rejected_nats: the same of the rejected continuations.
        chosen_tokens: int64 (N,), how many tokens each sum is over.
        rejected_tokens: the same of the rejected continuations.
    """

    ids: tuple[str, ...]
    chosen_nats: NDArray[np.float64]
    rejected_nats: NDArray[np.float64]
    chosen_tokens: NDArray[np.int64]
    rejected_tokens: NDArray[np.int64]


def encode_preferences(loaded: LoadedModel, pairs: Sequence[Preference]) -> list[EncodedPreference]:
    """Tokenise preference pairs, all text as plain text: markup in it never becomes a control token.

    The prompt is tokenised by itself. A continuation is what tokenising prompt and continuation together
    adds, where that leaves the prompt's tokens as they are; else (a merge across the boundary) it is
    tokenised by itself. So both continuations of a pair follow the same tokens.

    Raises:
        DataFormatError: a pair has an empty side, or is longer than the model's context; all such pairs are
        counted.
    """
    bos, context = leading_bos(loaded.tokenizer), loaded.context_tokens
    encoded, problems = [], []
    for pair in pairs:
        prompt = text_ids(loaded.tokenizer, pair.prompt)
        sides = [_continuation(loaded, pair.prompt, prompt, text) for text in (pair.chosen, pair.rejected)]
        row = EncodedPreference(prompt=[*bos, *prompt], chosen=sides[0], rejected=sides[1])
        longest = len(row.prompt) + max(map(len, sides))
        if not row.prompt or not all(sides):
            problems.append(f"{pair.id!r} (an empty prompt or continuation)")
        elif longest > context:
            problems.append(f"{pair.id!r} ({longest} tokens, the model's context has {context})")
        encoded.append(row)
    if problems:
        raise DataFormatError(
            f"{len(problems)} of {len(pairs)} preference pairs can't be used: {', '.join(problems[:NAMED])}; "
            "shorten, complete or remove them"
        )
    return encoded


def encode_preference(loaded: LoadedModel, pair: Preference) -> EncodedPreference:
    """`encode_preferences` of one pair."""
    return encode_preferences(loaded, [pair])[0]


def sequence_logprobs(
    loaded: LoadedModel,
    preferences: Sequence[Preference],
    *,
    batch_tokens: int = 4096,
    description: str = "preference pairs",
) -> PreferenceLogprobs:
    """Compute log p(chosen | prompt) and log p(rejected | prompt) of every pair, in the order given.

    Only the continuations' positions pass through the output head.

    Args:
        loaded: the model; left in the mode that it was found in.
        preferences: the pairs.
        batch_tokens: padded tokens in one forward; less where the vocabulary is large.
        description: what the progress line calls this.

    Raises:
        DataFormatError: a pair can't be used (see `encode_preferences`), or its log-probability is not
        finite.
    """
    encoded = encode_preferences(loaded, preferences)
    nats = encoded_logprobs(loaded, encoded, batch_tokens=batch_tokens, description=description)
    tokens = np.array([[len(row.chosen), len(row.rejected)] for row in encoded], dtype=np.int64).reshape(
        -1, 2
    )
    bad = [preferences[row].id for row in np.flatnonzero(~np.isfinite(nats).all(axis=1)).tolist()]
    if bad:
        raise DataFormatError(
            f"the model's log-probabilities are not finite for {len(bad)} of {len(preferences)} preference "
            f"pairs: {', '.join(map(repr, bad[:NAMED]))}; check the model's weights, or score with dtype "
            "float32"
        )
    return PreferenceLogprobs(
        ids=tuple(pair.id for pair in preferences),
        chosen_nats=nats[:, 0],
        rejected_nats=nats[:, 1],
        chosen_tokens=tokens[:, 0],
        rejected_tokens=tokens[:, 1],
    )


def encoded_logprobs(
    loaded: LoadedModel,
    encoded: Sequence[EncodedPreference],
    *,
    batch_tokens: int = 4096,
    description: str = "preference pairs",
) -> NDArray[np.float64]:
    """Log-probabilities in nats of pairs as token ids, float64 (N, 2): chosen and rejected continuations."""
    prompts = [row.prompt for row in encoded for _ in range(2)]
    sides = [side for row in encoded for side in (row.chosen, row.rejected)]
    sums = np.zeros(len(sides))
    lengths = [len(prompt) + len(side) for prompt, side in zip(prompts, sides, strict=True)]
    bound = PAIR_LOGITS_BYTES // (4 * int(loaded.model.get_output_embeddings().weight.shape[0]))
    with evaluating(loaded.model), Progress(description, total=len(sides), unit="continuations") as progress:
        for rows in token_batches(lengths, max(1, min(batch_tokens, bound))):
            sums[rows] = _sums(loaded, [prompts[row] for row in rows], [sides[row] for row in rows])
            progress.advance(len(rows))
    return sums.reshape(-1, 2)


def win_rate(logprobs: PreferenceLogprobs, *, confidence: float = 0.95) -> dict[str, Any]:
    """Share of pairs whose chosen continuation is the more probable one, with Wilson score intervals.

    Args:
        logprobs: of held-out pairs.
        confidence: of the intervals.

    Returns:
        `n`, `sum` (whole continuations compared) and `per_token` (means over tokens compared), the latter two
        as `{"value", "low", "high"}`. A tie counts as half a win.

    Raises:
        NotEnoughDataError: there are no pairs.

    Source: Wilson 1927, *Probable inference, the law of succession, and statistical inference*.
    """
    n = len(logprobs.ids)
    if n == 0:
        raise NotEnoughDataError("win rate: no preference pairs; give at least one held-out pair")
    chosen, rejected = logprobs.chosen_nats, logprobs.rejected_nats
    whole = np.heaviside(chosen - rejected, 0.5)
    mean = np.heaviside(chosen / logprobs.chosen_tokens - rejected / logprobs.rejected_tokens, 0.5)

    def share(wins: NDArray[np.float64]) -> dict[str, float]:
        value = float(wins.mean())
        return Interval(value, *wilson(value, n, confidence=confidence)).to_dict()

    return {
        "n": n,
        "sum": share(whole),
        "per_token": share(mean),
    }


def _continuation(loaded: LoadedModel, prompt_text: str, prompt: list[int], text: str) -> list[int]:
    together = text_ids(loaded.tokenizer, prompt_text + text)
    if together[: len(prompt)] == prompt:
        return together[len(prompt) :]
    return text_ids(loaded.tokenizer, text)


def _sums(
    loaded: LoadedModel, prompts: Sequence[list[int]], sides: Sequence[list[int]]
) -> NDArray[np.float64]:
    """Sum of log-probabilities of each side after its prompt, float64 (B,)."""
    # The token at position t is predicted at t - 1, and nothing is predicted from the last token.
    ids = padded([[*prompt, *side][:-1] for prompt, side in zip(prompts, sides, strict=True)])
    rows = torch.tensor([row for row, side in enumerate(sides) for _ in side])
    columns = torch.tensor(
        [len(prompt) - 1 + i for prompt, side in zip(prompts, sides, strict=True) for i in range(len(side))]
    )
    logits = logits_at(loaded.model, ids, rows, columns)
    targets = torch.tensor([token for side in sides for token in side], device=logits.device)
    nats = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)
    sums = torch.zeros(len(sides), dtype=torch.float64).index_add_(0, rows, nats.double().cpu())
    return sums.numpy()

"""Preference pairs to log-probabilities of their continuations, as numpy records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from calib_core.data.preferences import Preference
from calib_core.errors import NAMED, DataFormatError, NotEnoughDataError
from calib_core.metrics.interval import Interval, IntervalRecord
from calib_core.metrics.means import wilson
from calib_core.metrics.summary import WinRateRecord
from calib_core.models.loading import LoadedModel
from calib_core.predictions.preferences import PreferenceLogprobs
from calib_core.runtime.progress import Progress
from calib_core.scoring.forward import (
    evaluating,
    logits_at,
    padded,
    token_batches,
)
from calib_core.scoring.prompts import leading_bos, text_ids

PAIR_LOGITS_BYTES = 256 * 1024 * 1024
"""Bound on the whole-vocabulary logits, float32, of one batch of preference pairs."""


@dataclass(frozen=True, kw_only=True)
class EncodedPreference:
    """A preference pair as token ids; the prompt begins with BOS where the tokenizer puts one."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


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


def win_rate(logprobs: PreferenceLogprobs, *, confidence: float = 0.95) -> WinRateRecord:
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

    def share(wins: NDArray[np.float64]) -> IntervalRecord:
        value = float(wins.mean())
        return Interval(value, *wilson(value, n, confidence=confidence)).to_dict()

    return {
        "n": n,
        "sum": share(logprobs.wins()),
        "per_token": share(logprobs.wins_per_token()),
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

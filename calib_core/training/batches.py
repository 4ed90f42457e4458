"""From encoded questions to a batch's loss: length-grouped batches, and the two objectives.

Source: Xiao et al. 2025, sections 4 (CFT) and 5 (RCFT).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from calib_core.decisions.target import ConfidenceTargets, Remainder, em_target
from calib_core.errors import ConfigError
from calib_core.scoring.forward import answer_logits, logits_at, padded
from calib_core.scoring.questions import EncodedQuestions
from calib_core.training import losses

Objective = Literal["cft", "rcft"]

SORTING_WINDOW = 16
"""Batches among which questions are sorted by length: little padding, and still a shuffled order."""


class LengthGroupedBatches(Sampler[list[int]]):
    """Shuffled batches of questions of similar length; the same for the same seed and epoch."""

    drop_last = False

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self.batch_size, self._seed = np.asarray(lengths), batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self._seed, self.epoch])
        order = random.permutation(len(self._lengths))
        window = self.batch_size * SORTING_WINDOW
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size].tolist() for i in range(0, len(part), self.batch_size)]
        yield from (batches[index] for index in random.permutation(len(batches)))


def passes(rows: Sequence[int], lengths: Sequence[int], pass_tokens: int) -> list[list[int]]:
    """A batch cut, in its order, into passes of at most `pass_tokens` padded tokens; a longer row goes alone.

    Args:
        rows: the batch.
        lengths: tokens of every question, of which `rows` are some.
        pass_tokens: what one forward and backward pass may hold.

    >>> passes([2, 0, 1], [4, 5, 3], 10)
    [[2, 0], [1]]
    """
    parts: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if not parts or (len(parts[-1]) + 1) * longest > pass_tokens:
            parts.append([])
            longest = lengths[row]
        parts[-1].append(row)
    return parts


def cft_loss(
    model: nn.Module, encoded: EncodedQuestions, rows: Sequence[int], label_smoothing: float = 0.0
) -> Tensor:
    """Mean of `L_SFT1 = -log p(y | x)` over the questions at `rows`: scalar, float32, nats.

    With `label_smoothing` that share of the answer's probability is asked for evenly over the letters.
    """
    logits = answer_logits(model, [encoded.input_ids[row] for row in rows])
    answers = losses.answer_nll_nats(logits, _answer_ids(encoded, rows).to(logits.device))
    if not label_smoothing:
        return answers.mean()
    letters, n_options = _letter_logits(logits, encoded, rows)
    even = losses.even_nll_nats(logits, letters, n_options)
    return ((1 - label_smoothing) * answers + label_smoothing * even).mean()


def rcft_loss(
    model: nn.Module,
    encoded: EncodedQuestions,
    rows: Sequence[int],
    targets: ConfidenceTargets | None,
    *,
    lambda_ece: float,
    remainder: Remainder = "tempered",
) -> Tensor:
    """Mean of `L_SFT2 + lambda * L_ECE` over the questions at `rows` (the M-step): scalar, float32.

    Raises:
        ConfigError: no target confidences were estimated before.
    """
    if targets is None:
        raise ConfigError("RCFT needs target confidences before its first step; run the E-step first")
    input_ids = [encoded.input_ids[row] for row in rows]
    lengths = torch.tensor([len(ids) for ids in input_ids])
    of_row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    column = torch.cat([torch.arange(len(ids)) for ids in input_ids])
    last = lengths.cumsum(0) - 1
    logits = logits_at(model, padded(input_ids), of_row, column, exact=last)
    where = logits.device
    answers = _answer_ids(encoded, rows)
    next_ids = torch.cat([torch.tensor([*ids[1:], a]) for ids, a in zip(input_ids, answers, strict=True)])
    letters, n_options = _letter_logits(logits[last.to(where)], encoded, rows)
    target = _em_targets(letters.detach(), n_options, targets, remainder)
    ece = losses.ece_loss(letters, target, n_options)
    nll = losses.sequence_nll_nats(logits, next_ids.to(where), lengths.to(where))
    return (nll + lambda_ece * ece).mean()


def _answer_ids(encoded: EncodedQuestions, rows: Sequence[int]) -> Tensor:
    return torch.tensor([encoded.letter_ids[row][encoded.questions[row].answer] for row in rows])


def _letter_logits(logits: Tensor, encoded: EncodedQuestions, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Letters' logits (B, K), columns beyond a row's options arbitrary, and the numbers of options (B,)."""
    letters = [encoded.letter_ids[row] for row in rows]
    widest = max(len(ids) for ids in letters)
    index = torch.tensor([[*ids, *[ids[0]] * (widest - len(ids))] for ids in letters], device=logits.device)
    return logits.gather(1, index), torch.tensor([len(ids) for ids in letters], device=logits.device)


def _em_targets(
    letters: Tensor, n_options: Tensor, targets: ConfidenceTargets, remainder: Remainder
) -> Tensor:
    beyond = torch.arange(letters.shape[1], device=letters.device) >= n_options[:, None]
    if not letters.isfinite().all():  # no target exists; nor is the loss finite, which the loop reports
        return torch.full_like(letters, torch.nan)
    probs = letters.masked_fill(beyond, -torch.inf).double().softmax(dim=1).cpu().numpy()
    target = em_target(probs, targets, n_options.cpu().numpy(), remainder=remainder)
    return torch.from_numpy(target).to(letters.device)

"""The losses of calibration-aware fine-tuning: functions of tensors, fp32 inside, with an explicit reduction.

Source: Xiao et al. 2025, sections 4 (CFT, `L_SFT1`) and 5 (RCFT, `L_SFT2 + lambda * L_ECE`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def answer_nll_nats(answer_logits: Tensor, answer_ids: Tensor) -> Tensor:
    """`L_SFT1 = -log p(y | x)`: the completion's loss over the whole vocabulary.

    Args:
        answer_logits: logits at the answer position, (B, V), any float dtype.
        answer_ids: token id of each right answer's letter, (B,), int64.

    Returns:
        Negative log-likelihood per example in nats, (B,), float32.
    """
    return F.cross_entropy(answer_logits.float(), answer_ids, reduction="none")


def even_nll_nats(answer_logits: Tensor, letter_logits: Tensor, n_options: Tensor) -> Tensor:
    """Cross-entropy of the even distribution over the option letters: what label smoothing adds to the loss.

    Even over a question's own letters, not over the vocabulary: smoothing over all tokens would teach the
    model to answer with something else than a letter.

    Args:
        answer_logits: logits at the answer position, (B, V), any float dtype.
        letter_logits: those of the option letters, (B, K); columns at or beyond a row's options are ignored.
        n_options: options of each row, (B,), int64.

    Returns:
        Mean over a row's letters of `-log p(letter | x)` in nats, (B,), float32.

    Source: label smoothing is Szegedy et al. 2016, section 7.
    """
    own = torch.arange(letter_logits.shape[1], device=letter_logits.device) < n_options[:, None]
    mean = letter_logits.float().masked_fill(~own, 0.0).sum(dim=1) / n_options
    return answer_logits.float().logsumexp(dim=1) - mean


def sequence_nll_nats(logits: Tensor, next_ids: Tensor, lengths: Tensor) -> Tensor:
    """`L_SFT2 = -log p(x, y) = -log p(x) - log p(y | x)`, the question's part as a mean over its tokens.

    The question's nats are averaged, so that it weighs no more than its answer, whatever its length. Summed
    up, its hundred nats would drown the answer and the ECE loss. Averaged over question and answer together,
    the answer would be one token of many: the ECE loss, outweighing it as many times, then pulls accuracy
    down with confidence.

    Args:
        logits: next-token logits of the P tokens of a batch, sequence after sequence, padding left out,
            (P, V), any float dtype.
        next_ids: id of the token that follows each of them, (P,), int64; after a sequence's last, the answer.
        lengths: tokens of each sequence, (B,), int64, 2 or more; they add up to P.

    Returns:
        Negative log-likelihood per example in nats, (B,), float32.
    """
    nll = F.cross_entropy(logits.float(), next_ids, reduction="none")
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=nll.device), lengths)
    sums = torch.zeros(len(lengths), device=nll.device).index_add(0, rows, nll)
    answers = nll[lengths.cumsum(0) - 1]
    return (sums - answers) / (lengths - 1) + answers


def ece_loss(letter_logits: Tensor, target: Tensor, n_options: Tensor) -> Tensor:
    """`L_ECE`: squared distance of the option distribution to the EM target, `sum_k (p_k - t_k)^2`.

    Args:
        letter_logits: logits of the option letters, (B, K); columns at or beyond a row's options are ignored.
        target: option distribution to move to, (B, K), without gradient, 0 beyond a row's options.
        n_options: options of each row, (B,), int64.

    Returns:
        Squared distance per example, (B,), float32, in [0, 2].
    """
    beyond = torch.arange(letter_logits.shape[1], device=letter_logits.device) >= n_options[:, None]
    probs = letter_logits.float().masked_fill(beyond, -torch.inf).softmax(dim=1)
    return (probs - target.detach().float()).square().sum(dim=1)

"""The EM target: which option distribution a model should have had, question by question.

E-step: `estimate_bin_targets` measures, on questions that the model was not trained on, how often its top
option is right at each level of confidence. `em_target` turns that into a distribution for each question,
which the M-step (the training loop) moves the model towards. Arrays are numpy float64; no model is known
here.

Source: Xiao et al. 2025, section 5 (EM algorithm, rank-preserving target); the remainder by a temperature,
any number of options and the mends of `rank_preserving_target` are this project's.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from calib_core.decisions.levels import ConfidenceTargets, check_unit, estimate_bin_targets
from calib_core.errors import DataFormatError

__all__ = ["ConfidenceTargets", "Remainder", "em_target", "estimate_bin_targets", "rank_preserving_target"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Remainder: TypeAlias = Literal["tempered", "tanh"]

_SUM_TOLERANCE = 1e-4  # a float32 softmax over 26 options is well within; logits are not

_LARGEST_OTHER = 0.99
"""How far from the others' mean to the top's share another option's share may lie: below 1, so that the top
option is the only one on top."""

_FLATTEST, _SHARPEST, _SMALLEST = 2.0**-40, 4.0, 1e-300
"""Least and largest 1 / T that a row is given, and the probability that 0 counts as."""


def rank_preserving_target(
    probs: ArrayLike,
    top_conf: ArrayLike,
    *,
    n_options: ArrayLike | None = None,
    remainder: Remainder = "tempered",
) -> Floats:
    """Give each row's top option the probability `top_conf` and share the rest out in the order of `probs`.

    * `tempered`: the row at the temperature at which its top option has `top_conf`; so a row that is right
      but for its temperature gets its true distribution. No row is sharpened more than four times (`1 / T`):
      of two options that are nearly equal, one would be dropped for the other. Zeros count as 1e-300.
    * `tanh`: the other options get `t_j = alpha (tanh(gamma p_j) + 1)` with `gamma = ln 3 / (p_second (1 -
      top_conf))` and `alpha` such that the row sums to one: none has more than twice another's share.
      `gamma p_j` is computed as `(p_j / p_second) ln 3 / (1 - top_conf)`, which has no overflow; where all
      the others are 0 they share the rest evenly.

    For both:

    * `top_conf = 1`: the others get 0.
    * `top_conf > 1 / K`: the top option alone is on top. Where another one's share would come too near (top
      options that are equal, or nearly; with `tanh` also small `top_conf`), the others' shares are drawn
      towards their mean until the largest lies 1 % of the way from there below `top_conf`.
    * `top_conf = 1 / K`: all options get the same.
    * `top_conf < 1 / K`: no distribution has this top option on top. It gets what was asked for; `em_target`
      never asks for it.
    * several options share the top: the first of them, as in `argmax`, is the top option.

    Order is kept weakly: `p_i > p_j` gives `t_i >= t_j`, equal where float64 can't tell them apart.

    Args:
        probs: option probabilities (not logits), (N, K), each row summing to 1.
        top_conf: probability for each row's top option, (N,), in [0, 1].
        n_options: options of each row, (N,), at least 2: columns at or beyond are absent and stay 0. All K if
            left out.
        remainder: how the rest is shared out.

    Returns:
        Target distributions, (N, K), float64, rows summing to 1.

    Raises:
        DataFormatError: shapes don't fit, a row is no distribution, or a value is out of range.

    Source: `tanh` is the map of Xiao et al. 2025, section 5, for any K; `tempered` is this project's.

    >>> rank_preserving_target([[0.9, 0.06, 0.04, 0.0]], [0.7]).round(4).tolist()
    [[0.7, 0.1661, 0.1339, 0.0]]
    >>> rank_preserving_target([[0.9, 0.06, 0.04, 0.0]], [0.7], remainder="tanh").round(4).tolist()
    [[0.7, 0.1203, 0.1195, 0.0602]]
    """
    p = np.asarray(probs, dtype=np.float64)
    top_conf = np.asarray(top_conf, dtype=np.float64)
    n_options = _checked_options(p, n_options)
    _check_distributions(p, n_options)
    check_unit(top_conf, "top_conf", len(p))
    n, k = p.shape
    rows = np.arange(n)
    top = p.argmax(axis=1)
    present = np.arange(k) < n_options[:, None]
    others = present.copy()
    others[rows, top] = False
    rest = 1.0 - top_conf

    weight = _tempered(p, present, top_conf) if remainder == "tempered" else _tanh(p, others, rest)
    weight = np.where(others, weight, 0.0)
    shares = rest[:, None] * weight / weight.sum(axis=1, keepdims=True)

    mean = (rest / (n_options - 1))[:, None]
    largest = shares.max(axis=1, initial=0.0)[:, None]
    limit = mean + _LARGEST_OTHER * (top_conf[:, None] - mean)
    breaks = (largest > limit) & (top_conf >= 1.0 / n_options)[:, None]
    pull = np.divide(limit - mean, largest - mean, out=np.zeros_like(mean), where=breaks & (largest > mean))
    # The minimum takes off what rounding adds.
    mended = np.minimum(mean + np.clip(pull, 0.0, 1.0) * (shares - mean), top_conf[:, None])
    target = np.where(others, np.where(breaks, mended, shares), 0.0)
    target[rows, top] = top_conf
    return target


def _tempered(p: Floats, present: NDArray[np.bool_], top_conf: Floats) -> Floats:
    """Weights of the other options at the temperature that gives the top one `top_conf`, (N, K).

    They are relative to the largest of them, so that they don't vanish beside the top's.
    """
    logits = np.where(present, np.log(np.maximum(p, _SMALLEST)), -np.inf)
    logits -= logits.max(axis=1, keepdims=True)
    low, high = np.full(len(p), math.log(_FLATTEST)), np.full(len(p), math.log(_SHARPEST))
    for _ in range(50):  # from 29 wide to what float64 can tell apart
        middle = (low + high) / 2
        flat = softmax(np.exp(middle)[:, None] * logits, axis=1).max(axis=1) < top_conf
        low, high = np.where(flat, middle, low), np.where(flat, high, middle)
    scaled = np.exp(high)[:, None] * logits
    scaled[np.arange(len(p)), p.argmax(axis=1)] = -np.inf
    return np.exp(scaled - scaled.max(axis=1, keepdims=True))


def _tanh(p: Floats, others: NDArray[np.bool_], rest: Floats) -> Floats:
    """The authors' weights of the other options, (N, K)."""
    second = np.where(others, p, 0.0).max(axis=1, initial=0.0)
    ratio = np.divide(p, second[:, None], out=np.zeros_like(p), where=others & (second > 0)[:, None])
    gamma_p = np.divide(math.log(3.0) * ratio, rest[:, None], out=np.zeros_like(p), where=(rest > 0)[:, None])
    return np.asarray(np.tanh(gamma_p) + 1.0)


def em_target(
    probs: ArrayLike,
    targets: ConfidenceTargets,
    n_options: ArrayLike | None = None,
    *,
    remainder: Remainder = "tempered",
) -> Floats:
    """The M-step's target for each row: its level's confidence, at least 1 / K, on the top option.

    Args:
        probs: the model's option probabilities now, (N, K), 0 beyond a row's options.
        targets: the E-step's result.
        n_options: options of each row, (N,), at least 2; all K if left out.
        remainder: how the other options share the rest (see `rank_preserving_target`).

    Returns:
        Target distributions, (N, K), float64; the model's top option has the largest share in every row.

    Raises:
        DataFormatError: as for `rank_preserving_target`.

    Source: Xiao et al. 2025, section 5 (M-step).
    """
    p = np.asarray(probs, dtype=np.float64)
    options = _checked_options(p, n_options)
    _check_distributions(p, options)
    conf = np.minimum(p.max(axis=1, initial=0.0), 1.0)  # a float32 softmax may end an ulp above 1
    top_conf = np.maximum(targets.confidence_for(conf), 1.0 / options)
    return rank_preserving_target(p, top_conf, n_options=options, remainder=remainder)


def _checked_options(p: Floats, n_options: ArrayLike | None) -> Ints:
    if p.ndim != 2 or p.shape[1] < 2:
        raise DataFormatError(f"probs: expected (N, K) with K >= 2 options, got shape {p.shape}")
    options = np.full(len(p), p.shape[1]) if n_options is None else np.asarray(n_options)
    if options.shape != (len(p),) or not np.issubdtype(options.dtype, np.integer):
        raise DataFormatError(
            f"n_options: expected {len(p)} integers, got {options.dtype} of shape {options.shape}"
        )
    wrong = np.flatnonzero((options < 2) | (options > p.shape[1]))
    if len(wrong):
        raise DataFormatError(
            f"n_options: row {wrong[0]} has {options[wrong[0]]}, expected 2 to the {p.shape[1]} of probs"
        )
    return options.astype(np.int64)


def _check_distributions(p: Floats, n_options: Ints) -> None:
    absent = np.arange(p.shape[1]) >= n_options[:, None]
    total = p.sum(axis=1)
    # written so that NaN fails too
    good = (
        (p >= 0).all(axis=1)
        & (np.abs(total - 1.0) <= _SUM_TOLERANCE)
        & (np.where(absent, p, 0.0) == 0).all(axis=1)
    )
    wrong = np.flatnonzero(~good)
    if len(wrong):
        raise DataFormatError(
            f"probs: row {wrong[0]} ({len(wrong)} in all) is no distribution over its {n_options[wrong[0]]} "
            f"options: {p[wrong[0]].tolist()}; pass the softmax of the logits, 0 beyond a row's options"
        )

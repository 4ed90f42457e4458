"""The EM target: which option distribution a model's confidence should have been, bin by bin.

E-step: `estimate_bin_targets` measures, on questions that the model was not trained on, how often its top
option is right at each level of confidence. `em_target` turns that into a distribution for each question,
which the M-step (the training loop) moves the model towards. Arrays are numpy float64; no model is known
here.

Source: Xiao et al. 2025, section 5 (EM algorithm, rank-preserving target); shrinkage, monotone fit, the
floor, any number of options and the mends of `rank_preserving_target` are this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from calib_core.errors import ConfigError, DataFormatError
from calib_core.metrics.binning import bin_index, check_conf_correct

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR_STRENGTH = 5.0
"""Examples that the Beta prior at the overall accuracy counts for. The strength that fits a spread of bin
accuracies with standard deviation s about an overall accuracy a is a (1 - a) / s^2 - 1 (moments of the Beta
distribution): about 5 for bins that differ by 0.2, as those of models with 0.3 to 0.8 accuracy do."""

_SUM_TOLERANCE = 1e-4  # a float32 softmax over 26 options is well within; logits are not


def rank_preserving_target(
    probs: ArrayLike, top_conf: ArrayLike, *, n_options: ArrayLike | None = None
) -> Floats:
    """Give each row's top option the probability `top_conf` and share the rest out in the order of `probs`.

    The other options get `t_j = alpha (tanh(gamma p_j) + 1)` with `gamma = ln 3 / (p_second (1 - top_conf))`
    and `alpha` such that the row sums to one: shares in the order of `probs`, none more than twice another.
    Where the formula alone breaks, it is mended:

    * `p_second = 0`, or so small that gamma overflows: gamma is never formed, `gamma p_j` is computed as
      `(p_j / p_second) ln 3 / (1 - top_conf)`; where all the others are 0 they share the rest evenly.
    * `top_conf = 1`: the others get 0.
    * another option's share would exceed `top_conf` though `top_conf >= 1 / K`: the others' shares are drawn
      towards their mean, which can't exceed `top_conf`, until the largest equals it. Order and sum stay.
    * `top_conf < 1 / K`: no distribution has this top option on top. The row is what was asked for,
      `top_conf` and the formula's shares; `em_target` never asks for it.
    * several options share the top: the first of them, as in `argmax`, is the top option.

    Order is kept weakly: `p_i > p_j` gives `t_i >= t_j`, equal where tanh has reached 1 in float64.

    Args:
        probs: option probabilities (not logits), (N, K), each row summing to 1.
        top_conf: probability for each row's top option, (N,), in [0, 1].
        n_options: options of each row, (N,), at least 2: columns at or beyond are absent and stay 0. All K if
            left out.

    Returns:
        Target distributions, (N, K), float64, rows summing to 1.

    Raises:
        DataFormatError: shapes don't fit, a row is no distribution, or a value is out of range.

    Source: Xiao et al. 2025, section 5, for any K.

    >>> rank_preserving_target([[0.9, 0.06, 0.04, 0.0]], [0.7]).round(4).tolist()
    [[0.7, 0.1203, 0.1195, 0.0602]]
    """
    p = np.asarray(probs, dtype=np.float64)
    top_conf = np.asarray(top_conf, dtype=np.float64)
    n_options = _checked_options(p, n_options)
    _check_distributions(p, n_options)
    _check_unit(top_conf, "top_conf", len(p))
    n, k = p.shape
    rows = np.arange(n)
    top = p.argmax(axis=1)
    others = np.arange(k) < n_options[:, None]
    others[rows, top] = False
    rest = 1.0 - top_conf

    second = np.where(others, p, 0.0).max(axis=1, initial=0.0)
    ratio = np.divide(p, second[:, None], out=np.zeros_like(p), where=others & (second > 0)[:, None])
    gamma_p = np.divide(math.log(3.0) * ratio, rest[:, None], out=np.zeros_like(p), where=(rest > 0)[:, None])
    weight = np.where(others, np.tanh(gamma_p) + 1.0, 0.0)
    shares = rest[:, None] * weight / weight.sum(axis=1, keepdims=True)

    mean = (rest / (n_options - 1))[:, None]
    largest = shares.max(axis=1, initial=0.0)[:, None]
    breaks = (largest > top_conf[:, None]) & (top_conf >= 1.0 / n_options)[:, None]
    pull = np.divide(
        top_conf[:, None] - mean, largest - mean, out=np.zeros_like(mean), where=breaks & (largest > mean)
    )
    # The minimum takes off what rounding adds.
    mended = np.minimum(mean + np.clip(pull, 0.0, 1.0) * (shares - mean), top_conf[:, None])
    target = np.where(others, np.where(breaks, mended, shares), 0.0)
    target[rows, top] = top_conf
    return target


@dataclass(frozen=True, kw_only=True, eq=False)
class BinTargets:
    """The confidence that each level of a model's confidence should have been.

    Attributes:
        edges: bin edges, (M + 1,), from 0 to 1; bins are closed on the left, the last one on both sides.
        accuracy: target confidence of each bin, (M,), in [0, 1], never falling from bin to bin.
        counts: examples that each bin was estimated from, (M,), int64.
    """

    edges: Floats
    accuracy: Floats
    counts: Ints

    def confidence_for(self, conf: ArrayLike) -> Floats:
        """Target confidence of each of these confidences, (N,) in [0, 1] -> (N,).

        Raises:
            DataFormatError: a confidence is not a number in [0, 1].
        """
        conf = np.asarray(conf, dtype=np.float64)
        _check_unit(conf, "conf", conf.size)
        return self.accuracy[bin_index(conf, len(self.accuracy))]

    def to_dict(self) -> dict[str, list[float]]:
        """The same as JSON values; `from_dict` reads it back exactly."""
        return {
            "edges": self.edges.tolist(),
            "accuracy": self.accuracy.tolist(),
            "counts": self.counts.tolist(),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> BinTargets:
        """Read what `to_dict` wrote.

        Raises:
            DataFormatError: a field is missing, or lengths don't fit.
        """
        try:
            edges, accuracy = (np.asarray(value[key], dtype=np.float64) for key in ("edges", "accuracy"))
            counts = np.asarray(value["counts"], dtype=np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataFormatError(
                f"bin targets: field {error} is missing or not numbers; estimate them again"
            ) from None
        if accuracy.ndim != 1 or counts.shape != accuracy.shape or edges.shape != (len(accuracy) + 1,):
            raise DataFormatError(
                f"bin targets: {edges.shape} edges, {accuracy.shape} accuracies and {counts.shape} counts "
                "don't fit; estimate them again"
            )
        return cls(edges=edges, accuracy=accuracy, counts=counts)


def estimate_bin_targets(
    conf: ArrayLike,
    correct: ArrayLike,
    *,
    n_bins: int = 10,
    prior_strength: float = PRIOR_STRENGTH,
    floor: float = 0.0,
) -> BinTargets:
    """E-step: each confidence bin's accuracy, shrunk for small bins and made monotone in confidence.

    A bin's accuracy is the mean of its Beta posterior, `(hits + prior_strength * overall) / (n +
    prior_strength)`. The least-squares monotone fit, weighted by each bin's examples, then irons out falls
    from bin to bin. A bin without examples takes the value that the fit has there: on the line between its
    filled neighbours, or the outermost filled bin's beyond them.

    Args:
        conf: top-option probabilities, (N,), in [0, 1].
        correct: 1 if the top option is the label, else 0, (N,).
        n_bins: equal-width bins on [0, 1].
        prior_strength: examples that the prior counts for; 0 leaves bins as measured.
        floor: lower limit of every bin's target, for instance 1 / K where all questions have K options. With
            mixed numbers of options leave it at 0: `em_target` applies each row's own.

    Returns:
        Targets per bin.

    Raises:
        DataFormatError: shapes don't fit, or values are out of range.
        NotEnoughDataError: no examples.
        ConfigError: `n_bins`, `prior_strength` or `floor` out of range.

    Source: Xiao et al. 2025, section 5 (E-step).

    >>> estimate_bin_targets([0.2, 0.3, 0.9, 0.9], [0, 1, 1, 1], n_bins=2, prior_strength=2).accuracy.tolist()
    [0.625, 0.875]
    """
    conf, correct = check_conf_correct(conf, correct)
    if not prior_strength >= 0 or not 0 <= floor <= 1:
        raise ConfigError(
            f"prior_strength must be 0 or more and floor in [0, 1], received {prior_strength} and {floor}"
        )
    index = bin_index(conf, n_bins)
    counts = np.bincount(index, minlength=n_bins)
    hits = np.bincount(index, weights=correct, minlength=n_bins)
    filled = np.flatnonzero(counts)
    shrunk = (hits[filled] + prior_strength * correct.mean()) / (counts[filled] + prior_strength)
    fit = isotonic_regression(shrunk, weights=counts[filled].astype(np.float64)).x
    accuracy = np.interp(np.arange(n_bins), filled, np.clip(fit, 0.0, 1.0))
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    return BinTargets(edges=edges, accuracy=np.maximum(accuracy, floor), counts=counts.astype(np.int64))


def em_target(probs: ArrayLike, bin_targets: BinTargets, n_options: ArrayLike | None = None) -> Floats:
    """The M-step's target for each row: its bin's confidence, at least 1 / K, on the top option.

    Args:
        probs: the model's option probabilities now, (N, K), 0 beyond a row's options.
        bin_targets: the E-step's result.
        n_options: options of each row, (N,), at least 2; all K if left out.

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
    return rank_preserving_target(
        p, np.maximum(bin_targets.confidence_for(conf), 1.0 / options), n_options=options
    )


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


def _check_unit(value: Floats, name: str, n: int) -> None:
    if value.shape != (n,):
        raise DataFormatError(f"{name}: expected {n} values, one per row, got shape {value.shape}")
    wrong = np.flatnonzero(~((value >= 0) & (value <= 1)))
    if len(wrong):
        raise DataFormatError(
            f"{name}: row {wrong[0]} holds {value.flat[wrong[0]]}, expected a number in [0, 1]"
        )

"""A world where the target q(.|x) is known: questions, labels drawn from q, and models of known merit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib_core.predictions.table import Predictions

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class World:
    """Questions with the distribution that their labels are drawn from.

    Attributes:
        ids: names of the questions.
        q: the target's option probabilities, (N, K), 0 beyond a row's options.
        labels: one draw from each row of q, (N,).
        n_options: options of each row, (N,).
    """

    ids: tuple[str, ...]
    q: Floats
    labels: NDArray[np.int64]
    n_options: NDArray[np.int64]

    @property
    def critical_accuracy(self) -> float:
        """ACC* = E max_k q_k."""
        return float(self.q.max(axis=1).mean())

    def predictions(self, p: Floats, protocol: dict[str, object] | None = None) -> Predictions:
        """The table that a model with option probabilities `p` (N, K) leaves."""
        with np.errstate(divide="ignore"):
            logits = np.maximum(np.log(p), -80.0)  # a model's logits are finite where it has an option
        absent = np.arange(p.shape[1]) >= self.n_options[:, None]
        return Predictions(
            ids=self.ids,
            labels=self.labels,
            logits=np.where(absent, -np.inf, logits).astype(np.float32),
            n_options=self.n_options,
            subjects=(None,) * len(self.ids),
            protocol=protocol,
        )


def make_world(n: int, seed: int, *, options: tuple[int, ...] = (4,), spread: float = 2.0) -> World:
    """Draw `n` questions, each with one of `options`' numbers; logits of q are normal with sd `spread`."""
    rng = np.random.default_rng(seed)
    n_options = rng.choice(options, size=n)
    logits = spread * rng.standard_normal((n, max(options)))
    q = softmax(np.where(np.arange(max(options)) < n_options[:, None], logits, -np.inf))
    labels = (rng.random(n)[:, None] > q.cumsum(axis=1)).sum(axis=1)
    return World(
        ids=tuple(f"{seed}-{row}" for row in range(n)),
        q=q,
        labels=np.minimum(labels, n_options - 1),  # cumsum may end an ulp below 1
        n_options=n_options,
    )


def softmax(logits: Floats) -> Floats:
    """Row-wise softmax of (N, K)."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def tempered(q: Floats, temperature: float) -> Floats:
    """q with its logits divided by `temperature`: below 1 a model that is too sure, with q's ranking."""
    with np.errstate(divide="ignore"):
        return softmax(np.log(q) / temperature)


def memorised(p: Floats, labels: NDArray[np.int64], strength: float) -> Floats:
    """p after learning these labels by heart: the label's probability is at least `strength`."""
    return (1 - strength) * p + strength * np.eye(p.shape[1])[labels]


def scrambled(p: Floats, n_options: NDArray[np.int64], share: float, seed: int) -> Floats:
    """p with the options of a share of the rows turned round by one: a ranking worse than q's."""
    rng = np.random.default_rng(seed)
    turned = p.copy()
    for row in np.flatnonzero(rng.random(len(p)) < share):
        turned[row, : n_options[row]] = np.roll(p[row, : n_options[row]], 1)
    return turned

"""How often does the gate promote a model that it must not, and one that it should?

    python benchmarks/gate_rates.py [--worlds 1000] [--resamples 400]

prints one JSON object. In each world questions, labels and two models are drawn again. The input model is too
sure; the other models are made from it so that their true accuracy, calibration and discrimination are known:

* `margin`: exactly at a margin of the gate, all else repaired. At most 2.5 % may pass; 1 % is what the gate
  allows a run's first comparison.
* `attack`: a small calibration error without a better model, or a worse one. At most 1 % may pass.
* `within`: models that are worse by less than the accuracy margin, which may pass: how often they do.
* `power`: repaired honestly, with a share of the answers changed and accuracy kept. At least 80 % should pass
  at the number of questions that `required_questions` names.
* `years`: 52 weekly comparisons with models that lie at the accuracy margin. At most 5 % of the years may see
  a promotion.
* `decline`: 52 weekly comparisons with models that lose half of the accuracy margin each: how much of it is
  lost against the first champion.

About an hour on one core with the defaults.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy
from checkout import commit
from numpy.typing import NDArray

from calib_core.decisions.budget import TYPICAL_CHANGED, History, required_questions
from calib_core.decisions.gate import decide
from calib_core.metrics.means import share_change
from calib_core.predictions.table import Predictions

Floats = NDArray[np.float64]

OPTIONS = 4
CHANGED = TYPICAL_CHANGED
SIGNAL = 1.55  # how far the right option's evidence lies from the others': accuracy 0.72, AUROC 0.77
SHARPNESS = 2.5  # of the input model: its logits are those of a calibrated model, times this
MARGIN, TOTAL_MARGIN = 0.03, 0.05
BRIER_MARGIN = 0.02
WIN_RATE_MARGIN = 0.05
WEEKS = 52
SIZES = (400, 1116, 2000)


@dataclass(frozen=True)
class World:
    """N questions with the evidence on their options that a model has.

    The right option's evidence has mean `SIGNAL` and the others' 0, all with standard deviation 1; then
    `SIGNAL` times the evidence are the logits of a calibrated model, exactly. Another model may have other
    evidence, correlated with the first one's, of another strength.
    """

    labels: NDArray[np.int64]
    noise: Floats

    @classmethod
    def drawn(cls, rng: np.random.Generator, n: int) -> World:
        """Questions with labels that are equally likely each."""
        return cls(rng.integers(0, OPTIONS, n), rng.standard_normal((n, OPTIONS)))

    def logits(self, noise: Floats | None = None, signal: float = SIGNAL) -> Floats:
        """Logits of a calibrated model with this noise in its evidence; the input model's if left out."""
        right = np.eye(OPTIONS)[self.labels]
        return signal * (signal * right + (self.noise if noise is None else noise))

    @property
    def top(self) -> NDArray[np.int64]:
        """The input model's answers."""
        return self.logits().argmax(axis=1)

    @property
    def conf(self) -> Floats:
        """How often they are right, each."""
        return softmax(self.logits()).max(axis=1)

    def table(self, logits: Floats) -> Predictions:
        """The predictions of a model with these logits."""
        n = len(logits)
        return Predictions(
            ids=tuple(map(str, range(n))),
            labels=self.labels,
            logits=logits.astype(np.float32),
            n_options=np.full(n, OPTIONS),
            subjects=(None,) * n,
        )


Model = Callable[[World, np.random.Generator], Floats]


def softmax(logits: Floats) -> Floats:
    """Row-wise softmax of (N, K)."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


LARGE = World.drawn(np.random.default_rng(0), 100_000)
ACCURACY = float((LARGE.top == LARGE.labels).mean())


def mixed(world: World, rng: np.random.Generator, share: float) -> Floats:
    """Noise that has a part in common with the input model's."""
    return np.sqrt(1 - share) * world.noise + np.sqrt(share) * rng.standard_normal(world.noise.shape)


def calibrated(
    world: World, rng: np.random.Generator, *, share: float = 0.0, signal: float = SIGNAL
) -> Floats:
    """A calibrated model whose evidence has a share of its own, and a strength of its own."""
    return world.logits(mixed(world, rng, share), signal)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function is about 0."""
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2


def hits_of(share: float, signal: float = SIGNAL) -> NDArray[np.bool_]:
    """Right answers of another calibrated model in the large world."""
    logits = calibrated(LARGE, np.random.default_rng(1), share=share, signal=signal)
    return logits.argmax(axis=1) == LARGE.labels


def other_model(*, changed: float, gain: float = 0.0) -> Model:
    """A calibrated model that is right on other questions than the input model, and more often by `gain`.

    `changed` is the share of questions on which one of them is right and the other is wrong.
    """
    before = LARGE.top == LARGE.labels
    share = root(lambda x: float((hits_of(x) != before).mean()) - changed, 0.0, 1.0) if changed else 0.0
    signal = SIGNAL
    if gain:
        signal = root(lambda x: float(hits_of(share, x).mean()) - ACCURACY - gain, 0.5, 4.0)
    return partial(calibrated, share=share, signal=signal)


def equally_off(world: World, rng: np.random.Generator) -> Floats:
    """As far from calibrated as the input model, with evidence of its own: its ECE is the same."""
    return 1.3 * world.logits(mixed(world, rng, 0.02))


def constant(world: World, rng: np.random.Generator) -> Floats:
    """The same answers, every one with the confidence that is right on average."""
    return with_confidence(world, np.full(len(world.labels), ACCURACY))


def random_confidence(world: World, rng: np.random.Generator) -> Floats:
    """The same answers, with confidences that are right on average and mean nothing."""
    return with_confidence(world, np.clip(rng.normal(ACCURACY, 0.05, len(world.labels)), 0.3, 0.99))


def remainder_on_one_letter(world: World, rng: np.random.Generator) -> Floats:
    """The right confidences, with all that they leave on the first other letter (below the top one)."""
    conf, rows, other = world.conf, np.arange(len(world.labels)), np.where(world.top == 0, 1, 0)
    p = np.full((len(rows), OPTIONS), 1e-6)
    p[rows, other] = np.minimum(1 - conf, conf - 1e-6)
    p[rows, world.top] = conf
    return np.log(p)


def guesser(world: World, rng: np.random.Generator) -> Floats:
    """About no preference among the options: calibrated, and right by chance."""
    return 1e-3 * rng.standard_normal(world.noise.shape)


def with_confidence(world: World, conf: Floats) -> Floats:
    """Logits of the same answers with these confidences, the rest shared evenly."""
    rest = np.repeat(((1 - conf) / (OPTIONS - 1))[:, None], OPTIONS, axis=1)
    rest[np.arange(len(conf)), world.top] = conf
    return np.log(rest)


def blurred(world: World, rng: np.random.Generator, *, noise: float, curve: tuple[Floats, Floats]) -> Floats:
    """The same answers and remainders; the confidence is blurred on the log scale, and calibrated again."""
    conf = np.interp(blur(world, rng, noise), *curve)
    p, rows = softmax(world.logits()), np.arange(len(conf))
    p *= ((1 - conf) / (1 - world.conf))[:, None]
    p[rows, world.top] = conf
    return np.log(p)


def blur(world: World, rng: np.random.Generator, noise: float) -> Floats:
    """Log odds of the confidence, with noise."""
    conf = np.minimum(world.conf, 1 - 1e-9)
    return np.log(conf / (1 - conf)) + noise * rng.standard_normal(len(conf))


def blur_curve(noise: float) -> tuple[Floats, Floats]:
    """What a blurred score is worth: accuracy at each of its levels, in the large world."""
    score, conf = blur(LARGE, np.random.default_rng(2), noise), LARGE.conf
    parts = np.array_split(np.argsort(score), 200)
    return np.array([score[p].mean() for p in parts]), np.array([conf[p].mean() for p in parts])


def at_the_brier_margin() -> Model:
    """The blur that costs exactly the Brier margin in the large world."""

    def model(noise: float) -> Model:
        return partial(blurred, noise=noise, curve=blur_curve(noise))

    def excess(noise: float) -> float:
        rng = np.random.default_rng(3)
        return brier(model(noise)(LARGE, rng), LARGE.labels) - brier(LARGE.logits(), LARGE.labels)

    return model(root(lambda noise: excess(noise) - BRIER_MARGIN, 0.0, 20.0))


def brier(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Mean Brier score."""
    return float(((softmax(logits) - np.eye(OPTIONS)[labels]) ** 2).sum(axis=1).mean())


def pairs(rng: np.random.Generator, n: int, before: float, after: float) -> tuple[Floats, Floats]:
    """Wins of two models on the same pairs, which agree on most of them."""
    luck = rng.random(n)
    own = np.where(rng.random(n) < 0.8, luck, rng.random(n))
    return (luck < before).astype(np.float64), (own < after).astype(np.float64)


def passes(  # noqa: PLR0913
    model: Model,
    rng: np.random.Generator,
    n: int,
    resamples: int,
    *,
    sharpness: float = SHARPNESS,
    accuracy_margin: float = MARGIN,
    brier_margin: float = BRIER_MARGIN,
    win_rates: tuple[int, float, float] | None = None,
    history: History | None = None,
) -> bool:
    """Whether the gate promotes a model in one newly drawn world."""
    world = World.drawn(rng, n)
    before, after = world.table(sharpness * world.logits()), world.table(model(world, rng))
    level = (history or History()).level
    accuracy = share_change(before.correct(), after.correct(), confidence=1 - 2 * level)
    changed = bool((before.top() != after.top()).any())
    if changed and accuracy.low < -accuracy_margin:  # one criterion fails: the others can't make it pass
        return False
    options: dict[str, Any] = {
        "wins": win_rates and pairs(rng, *win_rates),
        "history": history,
        "accuracy_margin": accuracy_margin,
        "brier_margin": brier_margin,
    }
    # All criteria but the ECE's need no resamples.
    quick = decide(before, after, n_resamples=2, **options)
    if not all(holds for name, holds in quick.criteria.items() if name != "ece_fell"):
        return False
    return decide(before, after, n_resamples=resamples, **options).promoted


def rate(name: str, model: Model, n: int, given: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """Share of worlds in which the gate promotes a model."""
    started_s = time.perf_counter()
    rng = np.random.default_rng([1, n, sum(map(ord, name))])
    promoted = sum(passes(model, rng, n, given.resamples, **options) for _ in range(given.worlds))
    figures = {"model": name, "n": n, **options, "promoted": promoted / given.worlds}
    print(f"{figures} ({time.perf_counter() - started_s:.0f} s)", file=sys.stderr, flush=True)
    return figures


def years(given: argparse.Namespace, n: int) -> dict[str, Any]:
    """Share of years in which one of 52 models at the accuracy margin is promoted."""
    model = other_model(changed=CHANGED, gain=-MARGIN)
    rng = np.random.default_rng(3)
    seen = 0
    for _ in range(given.worlds):
        seen += any(
            passes(model, rng, n, given.resamples, brier_margin=2.0, history=History(comparisons=week))
            for week in range(WEEKS)
        )
    figures = {"n": n, "weeks": WEEKS, "with_a_promotion": seen / given.worlds}
    print(figures, file=sys.stderr, flush=True)
    return figures


def decline(given: argparse.Namespace, n: int) -> dict[str, Any]:
    """Accuracy lost in a year of models that each lose half of what one comparison accepts.

    Only the accuracy decides: the other criteria are taken to hold.
    """
    model = other_model(changed=0.02, gain=-MARGIN / 2)
    rng = np.random.default_rng(4)
    losses = []
    for _ in range(given.worlds):
        so_far, promotions = 0.0, 0
        for week in range(WEEKS):
            history = History(comparisons=week, accuracy_change=so_far)
            world = World.drawn(rng, n)
            hits = world.top == world.labels
            after = model(world, rng).argmax(axis=1) == world.labels
            change = share_change(hits, after, confidence=1 - 2 * history.level)
            if change.low >= -MARGIN and so_far + change.low >= -TOTAL_MARGIN:
                so_far, promotions = so_far + change.low, promotions + 1
        losses.append(promotions * MARGIN / 2)
    return {
        "n": n,
        "weeks": WEEKS,
        "loss_mean": float(np.mean(losses)),
        "loss_95": float(np.quantile(losses, 0.95)),
        "beyond_the_total_margin": float(np.mean(np.array(losses) > TOTAL_MARGIN + 1e-9)),
    }


def main() -> None:
    """Run everything and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=400)
    given = parser.parse_args()
    honest = other_model(changed=0.0)
    at_accuracy, at_brier = other_model(changed=CHANGED, gain=-MARGIN), at_the_brier_margin()
    attacks = {
        "constant confidence": constant,
        "random confidences": random_confidence,
        "remainder on one letter": remainder_on_one_letter,
        "guesser": guesser,
        "4 points worse": other_model(changed=CHANGED, gain=-0.04),
        "5 points worse": other_model(changed=CHANGED, gain=-0.05),
    }
    within = {f"{points} points worse": other_model(changed=CHANGED, gain=-points / 100) for points in (1, 2)}
    pair_attack, pair_margin = (200, 0.65, 0.35), (400, 0.65, 0.65 - WIN_RATE_MARGIN)
    result = {
        "environment": {
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "machine": platform.machine(),
            "commit": commit(),
        },
        "worlds": given.worlds,
        "resamples": given.resamples,
        "margin": [
            *(
                # The other criteria are made to hold, so that this one is seen alone.
                rate(
                    "ECE unchanged",
                    equally_off,
                    n,
                    given,
                    sharpness=1.3,
                    accuracy_margin=1.0,
                    brier_margin=2.0,
                )
                for n in SIZES[1:]
            ),
            # A model that much worse has a Brier score beyond its margin too: made to hold here.
            *(rate("accuracy at the margin", at_accuracy, n, given, brier_margin=2.0) for n in SIZES),
            *(rate("Brier score at the margin", at_brier, n, given) for n in SIZES),
            rate("win rate at the margin", honest, 1116, given, win_rates=pair_margin),
        ],
        "attack": [
            *(rate(name, model, n, given) for name, model in attacks.items() for n in SIZES),
            rate("win rate from 0.65 to 0.35", honest, 1116, given, win_rates=pair_attack),
        ],
        "within": [rate(name, model, n, given) for name, model in within.items() for n in SIZES[1:]],
        "power": [
            *(rate("temperature", honest, n, given) for n in (355, 800, 1116)),
            *(
                rate(f"{share:.0%} of the answers changed", other_model(changed=share), n, given)
                for share, n in (
                    *((share, required_questions(MARGIN, changed=share)) for share in (0.05, 0.1, 0.2)),
                    (0.1, 1000),
                    (0.2, 2 * required_questions(MARGIN, changed=0.2)),
                )
            ),
            *(
                rate(
                    f"{share:.0%} of the answers changed, {gain:.0%} gained",
                    other_model(changed=share, gain=gain),
                    500,
                    given,
                )
                for share, gain in ((0.1, 0.03), (0.2, 0.05), (0.3, 0.08))
            ),
        ],
        "years": years(given, 1116),
        "decline": decline(given, 5000),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

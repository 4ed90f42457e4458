"""Every figure of one table of predictions, each with its interval, as one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calib_core.errors import ConfigError
from calib_core.metrics.binning import check_conf_correct
from calib_core.metrics.bootstrap import (
    Interval,
    classwise_ece_interval,
    conf_ece_interval,
    debiased_ece_interval,
    resample,
    tail_share,
)
from calib_core.metrics.figures import adaptive_ece, auroc, mce, risk_coverage, smooth_ece
from calib_core.predictions.table import Predictions

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a table of predictions measures, with 95 % bootstrap intervals.

    The equal-mass ECE, the smooth ECE and the largest bin error are numbers: no interval is known for them
    whose coverage was shown.

    Attributes:
        n: questions.
        n_bins: equal-width confidence bins of every binned figure.
        accuracy: share of right answers.
        mean_confidence: mean probability of the chosen option.
        conf_ece: expected calibration error of the chosen option.
        cw_ece: class-wise calibration error, over all options.
        debiased_ece: `conf_ece` less what sampling noise adds to it.
        brier: Brier score over all options.
        nll_nats: mean negative log-likelihood of the right option.
        auroc: chance that a right answer is more confident than a wrong one; None where all are right, or all
            wrong.
        aurc: area under the risk-coverage curve.
        adaptive_ece: calibration error over bins of equal mass.
        smooth_ece: calibration error without bins.
        mce: largest error of a bin.
        letter_mass: mean share of the vocabulary's probability that lies on the letters; None where the table
            has none.

    Example:
        >>> figures = measure([[0.8, 0.2], [0.3, 0.7]] * 50, [0, 0] * 50)
        >>> figures.n, figures.accuracy.value, round(figures.mean_confidence.value, 3)
        (100, 0.5, 0.75)
        >>> print(figures.accuracy)
        0.500 (0.400 to 0.600)
    """

    n: int
    n_bins: int
    accuracy: Interval
    mean_confidence: Interval
    conf_ece: Interval
    cw_ece: Interval
    debiased_ece: Interval
    brier: Interval
    nll_nats: Interval
    auroc: Interval | None
    aurc: Interval
    adaptive_ece: float
    smooth_ece: float
    mce: float
    letter_mass: float | None

    def __str__(self) -> str:
        """One line per figure."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = {
            name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()
        }
        return "\n".join(f"{name:<16}{'-' if text == 'None' else text}" for name, text in shown.items())

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the attributes by name, intervals as `{value, low, high}`."""
        return asdict(self)


def measure(
    predictions: Predictions | ArrayLike,
    labels: ArrayLike | None = None,
    *,
    n_bins: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Measure a model by its probabilities: calibration, accuracy and what its confidence is worth.

    Args:
        predictions: a table of predictions, or probabilities (N, K) whose rows sum to 1.
        labels: the right options (N,), counted from 0; a table brings its own.
        n_bins: equal-width confidence bins of every binned figure.
        n_resamples: bootstrap resamples behind every interval.
        seed: of the resamples.

    Raises:
        DataFormatError: a row has no label, or is no distribution over its options.
        NotEnoughDataError: no rows.
        ConfigError: `n_bins` or `n_resamples` is out of range, or labels are missing or given twice.

    Example:
        >>> figures = measure([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]], [0, 1, 1, 1])
        >>> figures.accuracy.value, round(figures.conf_ece.value, 3), round(figures.brier.value, 3)
        (0.75, 0.3, 0.25)
    """
    if isinstance(predictions, Predictions):
        if labels is not None:
            raise ConfigError(
                "labels were given beside a table of predictions, which has its own; leave them out"
            )
        table = predictions
    elif labels is None:
        raise ConfigError("labels are missing; give the right options (N,), counted from 0")
    else:
        table = Predictions.from_probs(predictions, labels)
    conf, correct = check_conf_correct(table.confidence(), table.correct())
    options = {"n_resamples": n_resamples, "seed": seed}
    binned = {"n_bins": n_bins, **options}
    return Figures(
        n=len(table),
        n_bins=n_bins,
        conf_ece=conf_ece_interval(conf, correct, **binned),
        cw_ece=classwise_ece_interval(table.probs(), table.labels, **binned),
        debiased_ece=debiased_ece_interval(conf, correct, **binned),
        **_means(table, **options),
        **_rankings(conf, correct, **options),
        adaptive_ece=adaptive_ece(conf, correct, n_bins=n_bins),
        smooth_ece=smooth_ece(conf, correct),
        mce=mce(conf, correct, n_bins=n_bins),
        letter_mass=None if table.letter_mass is None else float(table.letter_mass.mean(dtype=np.float64)),
    )


def row_scores(table: Predictions) -> dict[str, Floats]:
    """The figures that are means over questions, question by question, (N,) each.

    Raises:
        DataFormatError: a row has no label.
    """
    probs, rows = table.probs(), np.arange(len(table))
    target = np.zeros_like(probs)
    target[rows, table.labels] = 1
    return {
        "accuracy": table.correct(),
        "mean_confidence": table.confidence(),
        "brier": ((probs - target) ** 2).sum(axis=1),
        # From log-probabilities: a probability below 1e-308 would make it infinite, which JSON can't hold.
        "nll_nats": -table.log_probs()[rows, table.labels],
    }


def mean_intervals(scores: Mapping[str, Floats], *, n_resamples: int, seed: int) -> dict[str, Interval]:
    """Bootstrap intervals of the means of several scores of the same rows, all on the same resamples."""
    columns = np.column_stack(list(scores.values()))
    resampled = resample(
        lambda weights: weights @ columns / len(columns), len(columns), n_resamples=n_resamples, seed=seed
    )
    values = zip(columns.mean(axis=0), resampled.T, strict=True)
    return {name: _interval(*value) for name, value in zip(scores, values, strict=True)}


def _means(table: Predictions, *, n_resamples: int, seed: int) -> dict[str, Interval]:
    return mean_intervals(row_scores(table), n_resamples=n_resamples, seed=seed)


def _rankings(conf: Floats, correct: Floats, *, n_resamples: int, seed: int) -> dict[str, Any]:
    """AUROC and AURC with their intervals; AUROC's is taken from the resamples on which it is defined."""
    order = np.argsort(-conf, kind="stable")
    starts = np.flatnonzero(np.diff(-conf[order], prepend=-np.inf))
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(conf) + 1))])

    def statistics(weights: Floats) -> Floats:
        """AUROC and AURC of R resamples, (R, 2), by the counts of each level of confidence."""
        counts = np.add.reduceat(weights[:, order], starts, axis=1)
        right = np.add.reduceat((weights * correct)[:, order], starts, axis=1)
        wrong = counts - right
        n_right, n_wrong = right.sum(axis=1), wrong.sum(axis=1)
        above = right.cumsum(axis=1) - right / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            ranked = (above * wrong).sum(axis=1) / (n_right * n_wrong)
            share = np.where(counts > 0, wrong / counts, 0.0)
        # Rows of one level are in random order: the mean risk over their ranks is a sum of harmonic numbers.
        last = counts.cumsum(axis=1)
        first, errors = last - counts, wrong.cumsum(axis=1) - wrong
        steps = harmonic[last.round().astype(np.int64)] - harmonic[first.round().astype(np.int64)]
        area = (wrong + (errors - share * first) * steps).sum(axis=1) / len(conf)
        return np.column_stack([ranked, area])

    ranked, area = resample(statistics, len(conf), n_resamples=n_resamples, seed=seed).T
    defined = ranked[np.isfinite(ranked)]
    return {
        "auroc": _interval(auroc(conf, correct), defined) if defined.size else None,
        "aurc": _interval(risk_coverage(conf, correct).aurc, area),
    }


def _interval(value: float, resampled: Floats) -> Interval:
    tail = tail_share(CONFIDENCE)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))

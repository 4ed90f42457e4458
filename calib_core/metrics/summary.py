"""Every figure of one table of predictions, each with its interval, as one record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike

from calib_core.errors import ConfigError
from calib_core.metrics.binning import check_conf_correct
from calib_core.metrics.figures import adaptive_ece, brier_of_rows, mce, nll_of_rows, smooth_ece
from calib_core.metrics.gaps import classwise_ece_interval, ece_intervals
from calib_core.metrics.interval import Interval, IntervalRecord, Spread, json_fields
from calib_core.metrics.means import aurc_linear, auroc_interval, mean_of, share_interval
from calib_core.predictions.table import Predictions


class FiguresRecord(TypedDict):
    """`Figures` as JSON."""

    n: int
    accuracy: IntervalRecord
    mean_confidence: IntervalRecord
    conf_ece: IntervalRecord
    cw_ece: IntervalRecord
    n_bins: NotRequired[int]
    debiased_ece: NotRequired[IntervalRecord]
    brier: NotRequired[IntervalRecord]
    nll_nats: NotRequired[IntervalRecord]
    auroc: NotRequired[IntervalRecord | None]
    aurc: NotRequired[IntervalRecord]
    adaptive_ece: NotRequired[float]
    smooth_ece: NotRequired[float]
    mce: NotRequired[float]
    letter_mass: NotRequired[float | None]
    n_clusters: NotRequired[int]


class WinRateRecord(TypedDict):
    """The preference win rate as JSON."""

    n: Annotated[int, "Pairs."]
    sum: Annotated[IntervalRecord, "Share of pairs whose chosen continuation is the more probable one."]
    per_token: Annotated[IntervalRecord, "The same with means over tokens."]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a table of predictions measures, with 95 % intervals.

    How often the intervals hold the truth is measured by `benchmarks/interval_coverage.py`. The equal-mass
    ECE, the smooth ECE and the largest bin error are numbers: no interval is known for them whose coverage
    was shown.

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
        n_clusters: how many of the questions count as independent; `n` where they all do.

    Example:
        >>> figures = measure([[0.8, 0.2], [0.3, 0.7]] * 50, [0, 0] * 50)
        >>> figures.n, figures.accuracy.value, round(figures.mean_confidence.value, 3)
        (100, 0.5, 0.75)
        >>> print(figures.accuracy)
        0.500 (0.403 to 0.597)
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
    n_clusters: int

    def __str__(self) -> str:
        """One line per figure."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = {
            name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()
        }
        return "\n".join(f"{name:<16}{'-' if text == 'None' else text}" for name, text in shown.items())

    def to_dict(self) -> FiguresRecord:
        """JSON form: the attributes by name, intervals as `{value, low, high}`."""
        return cast(FiguresRecord, asdict(self, dict_factory=json_fields))


def measure(
    predictions: Predictions | ArrayLike,
    labels: ArrayLike | None = None,
    *,
    n_bins: int = 10,
    cluster_by: str = "group",
    n_resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Measure a model by its probabilities: calibration, accuracy and what its confidence is worth.

    Args:
        predictions: a table of predictions, or probabilities (N, K) whose rows sum to 1.
        labels: the right options (N,), counted from 0; a table brings its own.
        n_bins: equal-width confidence bins of every binned figure.
        cluster_by: what questions that depend on each other have in common: `group` (the table's column
            of this name), `subject`, or `none`; intervals take them together.
        n_resamples: bootstrap resamples behind the intervals of calibration errors; the others need none.
        seed: of the resamples.

    Raises:
        DataFormatError: a row has no label, or is no distribution over its options.
        NotEnoughDataError: no rows.
        ConfigError: `n_bins`, `n_resamples` or `cluster_by` is out of range, or labels are missing or given
            twice.

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
    clusters = table.clusters(cluster_by)
    binned: dict[str, Any] = {
        "n_bins": n_bins,
        "clusters": clusters,
        "n_resamples": n_resamples,
        "seed": seed,
    }
    conf_ece, debiased_ece = ece_intervals(conf, correct, **binned)
    both_outcomes = correct.min() < correct.max()
    return Figures(
        n=len(table),
        n_bins=n_bins,
        accuracy=share_interval(correct, clusters=clusters),
        mean_confidence=mean_of(conf, clusters).interval("logit"),
        conf_ece=conf_ece,
        cw_ece=classwise_ece_interval(table.probs(), table.labels, **binned),
        debiased_ece=debiased_ece,
        brier=mean_of(brier_of_rows(table), clusters).interval("log").within(0, 2),
        nll_nats=mean_of(nll_of_rows(table), clusters).interval("log"),
        auroc=auroc_interval(conf, correct, clusters=clusters) if both_outcomes else None,
        aurc=aurc_linear(conf, correct, clusters).interval("log").within(0, 1),
        adaptive_ece=adaptive_ece(conf, correct, n_bins=n_bins),
        smooth_ece=smooth_ece(conf, correct),
        mce=mce(conf, correct, n_bins=n_bins),
        letter_mass=None if table.letter_mass is None else float(table.letter_mass.mean(dtype=np.float64)),
        n_clusters=Spread.of(len(table), clusters).n_clusters,
    )

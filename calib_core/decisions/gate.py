"""The gate: a recalibrated model replaces the input model only where the test questions show that it may.

Every criterion is decided by a limit of an interval, never by a figure as measured:

* the conf-ECE fell (paired interval below zero);
* accuracy held: it did not fall by more than a margin, in this comparison and since the first champion;
* the confidence is as informative as the input model's after one temperature: the Brier score did not rise
  above that by more than a margin, and if the input model's confidence ranks right answers above wrong
  ones, the output model's does too;
* where preference pairs were given, the win rate did not fall by more than a margin.

A model passes where all of them hold, so that one that lies at any margin passes no more often than the
level of the comparison says (`calib_core.decisions.budget`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calib_core.decisions.budget import LEVEL, History
from calib_core.decisions.temperature import apply_temperature, cross_fitted, one_temperature_apart
from calib_core.decisions.verdict import KEPT, PROMOTED, GateResult, Margins, findings
from calib_core.errors import DataFormatError, NotEnoughDataError
from calib_core.metrics.binning import check_n_bins
from calib_core.metrics.figures import brier_of_rows, nll_of_rows
from calib_core.metrics.gaps import bin_gaps, gap_sum_change
from calib_core.metrics.interval import Clusters, Interval
from calib_core.metrics.means import auroc_interval, mean_of, share_change
from calib_core.predictions.protocols import check_same_protocol
from calib_core.predictions.table import Predictions

Floats = NDArray[np.float64]


def decide(  # noqa: PLR0913
    before: Predictions,
    after: Predictions,
    *,
    accuracy_margin: float = 0.03,
    total_accuracy_margin: float = 0.05,
    brier_margin: float = 0.02,
    win_rate_margin: float = 0.05,
    wins: tuple[Floats, Floats] | None = None,
    temperature: float | None = None,
    history: History | None = None,
    n_bins: int = 10,
    n_resamples: int = 1000,
    cluster_by: str = "group",
    seed: int = 0,
) -> GateResult:
    """Compare two models on the same test questions, and say whether the second may replace the first.

    How often it is wrong and right is measured by `benchmarks/gate_rates.py`.

    Args:
        before: the input model's predictions.
        after: the recalibrated model's, the same ids in the same order with the same labels.
        accuracy_margin: the fall in accuracy that is accepted, in [0, 1].
        total_accuracy_margin: the fall since the first champion that is accepted, in [0, 1].
        brier_margin: the rise of the Brier score that is accepted, in [0, 2].
        win_rate_margin: the fall of the win rate that is accepted, in [0, 1].
        wins: of the model before and of the model after, for the same preference pairs: 1 where the chosen
            continuation is the more probable one, 0 where it isn't, 0.5 for a tie.
        temperature: the input model's, fitted on other questions; cross-fitted on these if left out.
        history: what came before; nothing if left out.
        n_bins: equal-width bins of the ECE.
        n_resamples: bootstrap resamples.
        cluster_by: what questions that depend on each other have in common, see `Predictions.clusters`.
        seed: of the resamples.

    Raises:
        DataFormatError: the questions, their order or their labels differ, a label is missing, or the tables
            were made in different ways (all but the adapter).
        NotEnoughDataError: fewer than two rows.
        ConfigError: a parameter is out of range.

    Example:
        >>> labels = [0, 1, 0, 0] * 50
        >>> sure = Predictions.from_probs([[0.99, 0.01]] * 200, labels)
        >>> mended = Predictions.from_probs([[0.74, 0.26]] * 200, labels)
        >>> decide(sure, mended).promoted, decide(mended, sure).promoted
        (True, False)
    """
    margins = Margins(
        accuracy=accuracy_margin,
        total_accuracy=total_accuracy_margin,
        brier=brier_margin,
        win_rate=win_rate_margin,
    )
    history = history or History()
    check_n_bins(n_bins)
    check_same_questions(before, after)
    check_same_protocol(before, after)
    if len(before) < 2:
        raise NotEnoughDataError(f"the gate needs two test questions at least, received {len(before)}")
    if wins is not None:
        _check_wins(*wins)
    # Where the year's share is used up nothing is promoted; figures are then shown at a first one's level.
    confidence = 1 - 2 * (history.level or LEVEL)
    clusters = before.clusters(cluster_by)
    hits_before, hits_after = before.correct(), after.correct()
    ece_change = gap_sum_change(
        bin_gaps(before.confidence(), hits_before, n_bins=n_bins),
        bin_gaps(after.confidence(), hits_after, n_bins=n_bins),
        clusters=clusters,
        n_resamples=n_resamples,
        confidence=confidence,
        seed=seed,
    )
    accuracy_change = share_change(hits_before, hits_after, clusters=clusters, confidence=confidence)
    if one_temperature_apart(before, after):  # no answer differs, on these questions or on others
        accuracy_change = Interval(0.0, 0.0, 0.0)
    scaled = cross_fitted(before) if temperature is None else apply_temperature(before, temperature)
    result = GateResult(
        promoted=False,
        ece_change=ece_change,
        accuracy_change=accuracy_change,
        brier_change=_score_change(brier_of_rows, scaled, after, clusters, confidence).within(-2, 2),
        nll_change=_score_change(nll_of_rows, scaled, after, clusters, confidence),
        auroc_before=_auroc(before, clusters, confidence),
        auroc_after=_auroc(after, clusters, confidence),
        win_rate_change=None if wins is None else share_change(*wins, confidence=confidence),
        accuracy_since_first=history.accuracy_change + accuracy_change.low,
        level=history.level,
        comparison=history.comparisons + 1,
        n=len(before),
        criteria={},
        reasons=(),
    )
    changed = float((hits_before != hits_after).mean())
    found = findings(result, margins, changed=changed, n_pairs=0 if wins is None else len(wins[0]))
    promoted = history.level > 0 and all(finding.holds for finding in found)
    return replace(
        result,
        promoted=promoted,
        criteria={finding.name: finding.holds for finding in found},
        reasons=(*(finding.sentence for finding in found), PROMOTED if promoted else KEPT),
    )


def _score_change(
    score: Callable[[Predictions], Floats],
    before: Predictions,
    after: Predictions,
    clusters: Clusters | None,
    confidence: float,
) -> Interval:
    """Change of a mean score of the rows, with its paired interval."""
    return mean_of(score(after) - score(before), clusters).interval(confidence=confidence)


def _auroc(table: Predictions, clusters: Clusters | None, confidence: float) -> Interval | None:
    correct = table.correct()
    if correct.min() == correct.max():
        return None
    return auroc_interval(table.confidence(), correct, clusters=clusters, confidence=confidence)


def _check_wins(one: Floats, other: Floats) -> None:
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise DataFormatError(
            f"wins: {one.shape} before and {other.shape} after; give one value per pair, for the same pairs"
        )
    if not all(np.isin(side, (0.0, 0.5, 1.0)).all() for side in (one, other)):
        raise DataFormatError("wins must be 1 (chosen is more probable), 0 or 0.5 (a tie)")


def check_same_questions(before: Predictions, after: Predictions) -> None:
    """Refuse two tables that are not of the same questions, in the same order, with the same labels.

    Raises:
        DataFormatError: they are not; the difference is named.
    """
    if before.ids != after.ids:
        if sorted(before.ids) == sorted(after.ids):
            raise DataFormatError(
                "the two predictions tables hold the same questions in different orders (field 'id'); "
                "sort both the same way"
            )
        missing, extra = set(before.ids) - set(after.ids), set(after.ids) - set(before.ids)
        example = min(missing or extra)
        raise DataFormatError(
            f"the two predictions tables hold different questions: {len(missing)} only before, "
            f"{len(extra)} only after (for instance id {example!r}); score both models on the same questions"
        )
    different = np.flatnonzero((before.labels != after.labels) | (before.n_options != after.n_options))
    if different.size:
        row = int(different[0])
        raise DataFormatError(
            f"the two predictions tables differ in label or number of options of {different.size} questions "
            f"(first: row {row + 1}, id {before.ids[row]!r}, field 'label'); score both on the same questions"
        )

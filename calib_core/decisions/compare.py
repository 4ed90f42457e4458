"""Two models on the same questions: how much each figure differs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from calib_core.decisions.gate import check_same_questions
from calib_core.metrics.bootstrap import Interval, bin_gaps, class_gaps, gap_sum_change
from calib_core.metrics.summary import mean_intervals, row_scores
from calib_core.predictions.table import Predictions, check_same_protocol


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The second model's figures minus the first one's, with paired 95 % intervals.

    A difference is shown where its interval leaves out 0.

    Attributes:
        n: questions.
        accuracy: difference in the share of right answers.
        mean_confidence: difference in the mean probability of the chosen option.
        conf_ece: difference in the expected calibration error.
        cw_ece: difference in the class-wise calibration error.
        brier: difference in the Brier score.
        nll_nats: difference in the mean negative log-likelihood.
    """

    n: int
    accuracy: Interval
    mean_confidence: Interval
    conf_ece: Interval
    cw_ece: Interval
    brier: Interval
    nll_nats: Interval

    def __str__(self) -> str:
        """One line per figure."""
        return "\n".join(f"{field.name:<16}{getattr(self, field.name)}" for field in fields(self))

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the attributes by name, intervals as `{value, low, high}`."""
        return asdict(self)


def compare(
    a: Predictions, b: Predictions, *, n_bins: int = 10, n_resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Compare two models on the same questions; both see the same resamples, so that shared luck cancels.

    Args:
        a: the first model's predictions.
        b: the second model's: the same ids in the same order with the same labels.
        n_bins: equal-width confidence bins of the calibration errors.
        n_resamples: bootstrap resamples behind every interval.
        seed: of the resamples.

    Raises:
        DataFormatError: the questions, their order or their labels differ, a label is missing, or the tables
            were made in different ways (all but the adapter).
        NotEnoughDataError: no rows.
        ConfigError: `n_bins` or `n_resamples` is out of range.

    Example:
        >>> labels = [0, 1] * 50
        >>> sure = Predictions.from_probs([[0.9, 0.1]] * 100, labels)
        >>> unsure = Predictions.from_probs([[0.6, 0.4]] * 100, labels)
        >>> difference = compare(sure, unsure)
        >>> round(difference.conf_ece.value, 3), difference.conf_ece.high < 0
        (-0.3, True)
    """
    check_same_questions(a, b)
    check_same_protocol(a, b)
    first, second = row_scores(a), row_scores(b)
    options = {"n_resamples": n_resamples, "seed": seed}
    binned = [bin_gaps(table.confidence(), table.correct(), n_bins=n_bins) for table in (a, b)]
    by_class = [class_gaps(table.probs(), table.labels, n_bins=n_bins) for table in (a, b)]
    return Comparison(
        n=len(a),
        conf_ece=gap_sum_change(binned[0], binned[1], **options),
        cw_ece=gap_sum_change(by_class[0], by_class[1], **options),
        **mean_intervals({name: second[name] - first[name] for name in first}, **options),
    )

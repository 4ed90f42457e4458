"""Two models on the same questions: how much each figure differs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from calib_core.decisions.gate import check_same_questions
from calib_core.decisions.temperature import one_temperature_apart
from calib_core.metrics.binning import check_conf_correct
from calib_core.metrics.figures import brier_of_rows, nll_of_rows
from calib_core.metrics.gaps import bin_gaps, class_gaps, gap_sum_change
from calib_core.metrics.interval import Interval, json_fields
from calib_core.metrics.means import aurc_linear, auroc_linear, change, mean_of, share_change
from calib_core.predictions.protocols import check_same_protocol
from calib_core.predictions.table import Predictions


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
        auroc: difference in the chance that a right answer is more confident than a wrong one; None where a
            model is right everywhere, or nowhere.
        aurc: difference in the area under the risk-coverage curve.
    """

    n: int
    accuracy: Interval
    mean_confidence: Interval
    conf_ece: Interval
    cw_ece: Interval
    brier: Interval
    nll_nats: Interval
    auroc: Interval | None
    aurc: Interval

    def __str__(self) -> str:
        """One line per figure."""
        return "\n".join(f"{field.name:<16}{getattr(self, field.name)}" for field in fields(self))

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the attributes by name, intervals as `{value, low, high}`."""
        return asdict(self, dict_factory=json_fields)


def compare(
    a: Predictions,
    b: Predictions,
    *,
    n_bins: int = 10,
    cluster_by: str = "group",
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same questions, question by question, so that shared luck cancels.

    Args:
        a: the first model's predictions.
        b: the second model's: the same ids in the same order with the same labels.
        n_bins: equal-width confidence bins of the calibration errors.
        cluster_by: what questions that depend on each other have in common: `group`, `subject` or `none`.
        n_resamples: bootstrap resamples behind the intervals of calibration errors.
        seed: of the resamples.

    Raises:
        DataFormatError: the questions, their order or their labels differ, a label is missing, or the tables
            were made in different ways (all but the adapter).
        NotEnoughDataError: no rows.
        ConfigError: `n_bins`, `n_resamples` or `cluster_by` is out of range.

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
    clusters = a.clusters(cluster_by)
    options: dict[str, Any] = {"clusters": clusters, "n_resamples": n_resamples, "seed": seed}
    (conf_a, correct_a), (conf_b, correct_b) = (
        check_conf_correct(table.confidence(), table.correct()) for table in (a, b)
    )
    by_class = [class_gaps(table.probs(), table.labels, n_bins=n_bins) for table in (a, b)]
    ranked = all(correct.min() < correct.max() for correct in (correct_a, correct_b))
    return Comparison(
        n=len(a),
        accuracy=Interval(0.0, 0.0, 0.0)
        if one_temperature_apart(a, b)
        else share_change(correct_a, correct_b, clusters=clusters),
        mean_confidence=mean_of(conf_b - conf_a, clusters).interval().within(-1, 1),
        conf_ece=gap_sum_change(
            bin_gaps(conf_a, correct_a, n_bins=n_bins), bin_gaps(conf_b, correct_b, n_bins=n_bins), **options
        ),
        cw_ece=gap_sum_change(by_class[0], by_class[1], **options),
        brier=mean_of(brier_of_rows(b) - brier_of_rows(a), clusters).interval().within(-2, 2),
        nll_nats=mean_of(nll_of_rows(b) - nll_of_rows(a), clusters).interval(),
        auroc=change(auroc_linear(conf_a, correct_a, clusters), auroc_linear(conf_b, correct_b, clusters))
        .interval()
        .within(-1, 1)
        if ranked
        else None,
        aurc=change(aurc_linear(conf_a, correct_a, clusters), aurc_linear(conf_b, correct_b, clusters))
        .interval()
        .within(-1, 1),
    )

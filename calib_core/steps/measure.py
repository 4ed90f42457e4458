"""Measure: figures and a report of any predictions table, without a model; with a second table the regime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calib_core.decisions.bounds import regime_test
from calib_core.decisions.repair import REPAIRS, is_repairs
from calib_core.metrics.summary import measure
from calib_core.predictions.clusters import CLUSTER_BY
from calib_core.predictions.table import read_predictions
from calib_core.report import ReportData, write_page
from calib_core.runtime.progress import say
from calib_core.settings.checks import ConfigCheck
from calib_core.version import versions


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Parameters of a measurement.

    Attributes:
        n_bins: Equal-width confidence bins of every binned figure.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        critical_accuracy: Accuracy of the target model, where it is known (human agreement, say); estimated
            if left out.
        repairs: Answers that are allowed beside none: some of `temperature`, `cft` and `rcft`, with commas.
        on_undecided: `branch` (go on as not shown to be calibrated) or `stop` where the interval straddles
            the target.
        cluster_by: What questions that depend on each other have in common, for intervals: `group` (the
            column of that name), `subject` or `none`.
        n_resamples: Bootstrap resamples behind every interval.
        seed: Seed of the bootstrap.
    """

    n_bins: int = 10
    target_ece: float = 0.08
    tolerance: float = 0.05
    critical_accuracy: float | None = None
    repairs: str = REPAIRS
    on_undecided: str = "branch"
    cluster_by: str = "group"
    n_resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check = ConfigCheck(self)
        check.one_of("on_undecided", ("branch", "stop"))
        check.one_of("cluster_by", CLUSTER_BY)
        check.value("repairs", is_repairs, f"some of {REPAIRS}, with commas between them")
        check.value("seed", lambda n: n >= 0, "0 or more")
        for name in ("n_bins", "n_resamples"):
            check.value(name, lambda n: n >= 1, "1 or more")
        check.value("target_ece", lambda ece: 0 < ece < 1, "an ECE above 0 and below 1")
        check.value("tolerance", lambda ece: 0 <= ece < 1, "0 or more and below 1")
        check.value("critical_accuracy", lambda share: 0 <= share <= 1, "a share from 0 to 1")
        check.finish()


def measure_table(
    config: MeasureConfig, predictions: Path, out: Path, *, fit: Path | None = None
) -> dict[str, Any]:
    """Measure a predictions table and write its report.

    Args:
        config: parameters of the measurement.
        predictions: table of questions that the model never saw, whoever made it.
        out: HTML file to write, whole or not at all.
        fit: table of the same model for the questions that it was, or is going to be, fine-tuned on; with it
            the regime is named.

    Returns:
        `figures` (as `calib metrics` gives them), `regime` (as `calib regime` gives it; None without `fit`)
        and `report`.

    Raises:
        DataFormatError: a table can't be read, a label is missing, or the two were made in different ways.
        NotEnoughDataError: the tables are too small for the regime test.
    """
    table = read_predictions(predictions)
    figures = measure(
        table,
        n_bins=config.n_bins,
        cluster_by=config.cluster_by,
        n_resamples=config.n_resamples,
        seed=config.seed,
    ).to_dict()
    regime = None
    if fit is not None:
        regime = regime_test(read_predictions(fit), table, **asdict(config)).to_dict()
    write_page(
        ReportData(
            title=predictions.stem,
            summary={"before": figures},
            before=table,
            regime=regime or {},
            parameters={"predictions": str(predictions), "fit": fit and str(fit), **asdict(config)},
            versions=versions(),
            fingerprints={"predictions": table.protocol or {}},
        ),
        out,
    )
    if regime:
        say(f"regime: {regime['regime']}; branch: {regime['branch']}. {' '.join(regime['reasons'])}")
    return {"figures": figures, "regime": regime, "report": str(out)}

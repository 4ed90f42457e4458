"""Component `measure`: figures and a report of any predictions table, without a model."""

from typing import NamedTuple, Optional

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def measure(  # noqa: D417 - outputs stand under Returns
    predictions: Input[Dataset],
    report: Output[HTML],
    metrics: Output[Metrics],
    repairs: str = "temperature,cft,rcft",
    on_undecided: str = "branch",
    target_ece: float = 0.08,
    tolerance: float = 0.05,
    critical_accuracy: Optional[float] = None,  # noqa: UP045 (KFP reads no `| None`)
    cluster_by: str = "group",
    n_resamples: int = 1000,
    n_bins: int = 10,
    seed: int = 0,
    fit: Input[Dataset] = None,
) -> NamedTuple("Outputs", conf_ece=float, regime=str):  # type: ignore[valid-type]
    """Measure a predictions table, whoever made it; with a second table name the model's regime.

    Args:
        predictions: Predictions table of questions that the model never saw: Parquet or JSON lines.
        repairs: Repairs that are allowed: some of `temperature`, `cft` and `rcft`, separated by commas.
        on_undecided: What to do if the interval straddles the target: `branch` (continue, as not shown to be
            calibrated) or `stop`.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        critical_accuracy: Accuracy of the target model, if it is known (human agreement, say); otherwise it
            is estimated.
        cluster_by: What questions that depend on each other have in common, for intervals: `group` (the
            column of that name), `subject` or `none`.
        n_resamples: Bootstrap resamples behind the intervals of calibration errors.
        n_bins: Equal-width confidence bins of every binned figure.
        seed: Seed of everything that is drawn at random.
        fit: Table of the same model for the questions that it was, or is going to be, fine-tuned on; with it
            the regime is named.

    Returns:
        report: The report, one self-contained page.
        metrics: Every figure.
        conf_ece: Expected calibration error of the confidence, to branch on.
        regime: `calibrated`, `calibratable` or `non_calibratable`; empty without `fit`.
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import measure as step
    from calib_core.steps.task import log_figures, reported_errors

    with reported_errors():
        config = config_from(step.MeasureConfig, arguments)
        fitted = Path(fit.path) if fit else None
        result = step.measure_table(config, Path(predictions.path), Path(report.path), fit=fitted)
    log_figures(metrics, result["figures"])
    return (result["figures"]["conf_ece"]["value"], result["regime"]["regime"] if result["regime"] else "")

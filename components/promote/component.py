"""Component `promote`: the gate between a model and its recalibrated successor, and the report."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Metrics, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(  # noqa: D417 - outputs stand under Returns
    before: str,
    after: str,
    model_before: str,
    model_after: str,
    branch: str,
    summary: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    accuracy_margin: float = 0.03,
    total_accuracy_margin: float = 0.05,
    brier_margin: float = 0.02,
    win_rate_margin: float = 0.05,
    cluster_by: str = "group",
    n_resamples: int = 1000,
    n_bins: int = 10,
    seed: int = 0,
    champion: str = "",
) -> NamedTuple("Outputs", promoted=bool, winner=str):  # type: ignore[valid-type]
    """Promote the model only where it is better calibrated and no less accurate, and report why.

    Args:
        before: URI of the input model's evaluation: the output `uri` of `evaluate`.
        after: URI of the output model's evaluation, or the same again.
        model_before: URI of the input model.
        model_after: URI of the output model.
        branch: Branch that was taken: `none`, `temperature`, `cft` or `rcft`.
        accuracy_margin: Largest drop in accuracy, as a share of all questions, that the gate accepts.
        total_accuracy_margin: Largest drop in accuracy since the first champion that it accepts.
        brier_margin: Largest rise of the Brier score, above the input model's after one temperature, that it
            accepts.
        win_rate_margin: Largest drop in the preference win rate, as a share of the held-out pairs, that it
            accepts.
        cluster_by: What questions that depend on each other have in common, for intervals: `group` (the
            column of that name), `subject` or `none`.
        n_resamples: Bootstrap resamples behind the intervals of calibration errors.
        n_bins: Equal-width confidence bins of every binned figure.
        seed: Seed of everything that is drawn at random.
        champion: Champion's folder, whose history the gate minds and whose figures over time the report
            shows; none if left out.

    Returns:
        summary: Folder with summary.json and report.html.
        report: The report, one self-contained page.
        metrics: Figures of the test fold, before and after.
        promoted: Whether the output model passed the gate.
        winner: URI of the model to use: the output model if it was promoted, else the input model.
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import promote as step
    from calib_core.steps.task import log_figures, reported_errors
    from calib_core.storage.uris import fetch

    with reported_errors():
        result = step.promote(
            config_from(step.PromoteConfig, arguments),
            before=fetch(before),
            after=fetch(after),
            model_before=model_before,
            model_after=model_after,
            branch=branch,
            out=Path(summary.path),
            report=report.uri,
            champion=champion,
        )
    Path(report.path).write_bytes((Path(summary.path) / "report.html").read_bytes())
    summary.metadata.update(before=before, after=after)
    log_figures(metrics, result["before"], prefix="before_")
    log_figures(metrics, result["after"], prefix="after_")
    return (result["promoted"], result["model"])

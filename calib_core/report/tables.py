"""The report on tables of predictions alone: one that was measured, or two that are compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from calib_core.decisions.gate import decide
from calib_core.decisions.result import RegimeResult
from calib_core.metrics.summary import measure
from calib_core.predictions.table import Predictions
from calib_core.report.cautions import cautions
from calib_core.report.html import ReportData, write_page
from calib_core.storage.files import check_output_file
from calib_core.storage.uris import published
from calib_core.version import versions


def write_report(  # noqa: PLR0913
    path: str | os.PathLike[str],
    *,
    before: Predictions,
    after: Predictions | None = None,
    regime: RegimeResult | None = None,
    title: str = "",
    parameters: Mapping[str, Any] | None = None,
    accuracy_margin: float = 0.03,
    brier_margin: float = 0.02,
    cluster_by: str = "group",
    n_bins: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the HTML report of one table of predictions, or of two models on the same questions.

    Args:
        path: HTML file to write, or a `file://` or `gs://` URI.
        before: the model's predictions, with labels.
        after: its successor's predictions for the same questions; the report then has both, and the gate's
            judgement of them.
        regime: what `regime_test` found, to be shown too.
        title: heading of the report; the file's name if left out.
        parameters: what else to list among the report's parameters, such as where the tables lie.
        accuracy_margin: the fall in accuracy that the gate accepts, in [0, 1].
        brier_margin: the rise of the Brier score that the gate accepts, in [0, 2].
        cluster_by: what questions that depend on each other have in common: `group`, `subject` or `none`.
        n_bins: equal-width confidence bins of every binned figure.
        n_resamples: bootstrap resamples behind every interval.
        seed: of the resamples.

    Returns:
        What the report says, as JSON values: `before` and `after` (figures), `cautions` about them,
        `promoted` (whether the gate would promote the second model) and `reasons`.

    Raises:
        DataFormatError: a row has no label, or the two tables are not of the same questions.
        NotEnoughDataError: no rows.
        ConfigError: a parameter is out of range, or the file can't be written there.

    Example:
        >>> import pathlib, tempfile
        >>> table = Predictions.from_probs([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]] * 20, [0, 1, 1] * 20)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     said = write_report(f"{folder}/report.html", before=table, title="My model")
        ...     "My model" in pathlib.Path(folder, "report.html").read_text()
        True
        >>> round(said["before"]["accuracy"]["value"], 3)
        0.667
    """
    with published(path) as local:
        check_output_file(local)
        options: dict[str, Any] = {
            "n_bins": n_bins,
            "cluster_by": cluster_by,
            "n_resamples": n_resamples,
            "seed": seed,
        }
        margins: dict[str, Any] = {"accuracy_margin": accuracy_margin, "brier_margin": brier_margin}
        summary: dict[str, Any] = {"before": measure(before, **options).to_dict()}
        if after is not None:
            gate = decide(before, after, **margins, **options)
            summary |= {
                "after": measure(after, **options).to_dict(),
                "promoted": gate.promoted,
                "reasons": list(gate.reasons[:-1]),  # without the verdict on use, which is a run's
            }
        sides = {"before": before, "after": after}
        names = {"before": "The model" if after is None else "The first model", "after": "The second model"}
        summary["cautions"] = [
            caution
            for side, table in sides.items()
            if table is not None
            for caution in cautions(table, model=names[side])
        ]
        data = ReportData(
            title=title or PurePath(path).stem,
            summary=summary,
            before=before,
            after=after,
            regime=regime.to_dict() if regime else {},
            parameters={**(parameters or {}), **margins, **options},
            versions=versions(),
            fingerprints={side: table.protocol or {} for side, table in sides.items() if table is not None},
        )
        write_page(data, local)
    return summary

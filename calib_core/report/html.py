"""The report's page: what is said where, and which of it there is data for.

The template (report.html.j2) only places what is made here; the numbers come from the run's summary and from
`calib_core.metrics.figures`, the drawings from `calib_core.report.plots`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from calib_core.champion.history import HEADLINE_FIGURES
from calib_core.metrics.figures import per_subject, reliability_bins, risk_coverage
from calib_core.metrics.interval import Interval
from calib_core.predictions.table import Predictions
from calib_core.report import plots, wording
from calib_core.report.trend import trend_section
from calib_core.runtime.secrets import shown
from calib_core.storage.files import whole_file

FEWEST_ANSWERED = 10
"""Answers at which a risk-coverage curve begins."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything that a report shows.

    Attributes:
        title: name of the report, the model's for instance.
        summary: `before` and, where there is one, `after` (figure name -> {value, low, high}); where a run
            decided something also `branch`, `promoted`, `reasons`; where measured `baselines` (name ->
            figures), `out_of_domain` and `win_rate` (`before` and `after` -> figures) and `timing` (step ->
            seconds); `cautions`, sentences on figures that rest on little.
        before: predictions of the input model on the test questions.
        after: predictions of the recalibrated model on the same questions; None where there is none.
        regime: `RegimeResult.to_dict()`, empty where no regime was tested.
        history: one dict per evaluation of the training run (`step`, `accuracy`, `mean_confidence`,
            `conf_ece`, and `chosen` true for the one whose weights were kept); None without training.
        trend: figures of all runs so far, this one last, as `calib_core.champion.history` keeps them;
            empty without.
        parameters: parameters of the run.
        versions: versions of the software.
        fingerprints: fingerprints of models and data.
    """

    title: str
    summary: Mapping[str, Any]
    before: Predictions
    after: Predictions | None = None
    regime: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] | None = None
    trend: Sequence[Mapping[str, Any]] = ()
    parameters: Mapping[str, Any]
    versions: Mapping[str, Any]
    fingerprints: Mapping[str, Any]


def render_report(data: ReportData) -> str:
    """Make the report's HTML.

    Raises:
        DataFormatError: a prediction's label is unknown.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("calib_core", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        title=data.title,
        styles=Markup(styles),  # noqa: S704 - our own file
        verdict=wording.verdict(data.summary, data.regime),
        paired=data.after is not None,
        n_questions=len(data.before),
        few=plots.FEW,
        stats=_stats(data),
        reliability=_reliability(data),
        bounds=_bounds(data.regime),
        comparison=_comparison(data.summary),
        selective=_risk_coverage(data),
        subjects=_subjects(data),
        out_of_domain=_figure_table(
            data.summary.get("out_of_domain"), only=(*HEADLINE_FIGURES, "letter_mass", "n")
        ),
        win_rate=_figure_table(data.summary.get("win_rate"), names=wording.WIN_RATE),
        history=_history(data.history or ()),
        trend=trend_section(data.trend),
        all_figures=_figure_table(data.summary),
        appendix=_appendix(data),
    )


def write_page(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the report's HTML atomically."""
    page = render_report(data)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _interval(figure: Any) -> Interval | None:
    """An interval out of its dict; None where the value is no interval."""
    if isinstance(figure, Mapping) and {"value", "low", "high"} <= figure.keys():
        low = -math.inf if figure["low"] is None else figure["low"]
        high = math.inf if figure["high"] is None else figure["high"]
        return Interval(figure["value"], low, high)
    return None


def _predictions(data: ReportData) -> dict[plots.Series, Predictions]:
    return {"before": data.before} if data.after is None else {"before": data.before, "after": data.after}


def _n_bins(data: ReportData) -> int:
    """The bins that the summary's figures were made with."""
    return int(data.summary["before"].get("n_bins", 10))


def _stats(data: ReportData) -> list[dict[str, Any]]:
    """The row of headline figures."""
    stats = []
    for key in HEADLINE_FIGURES:
        spans = {
            series: interval
            for series in _predictions(data)
            if (interval := _interval(data.summary[series].get(key))) is not None
        }
        if spans:
            label = wording.FIGURES[key]
            strip = plots.interval_strip(spans, name=f"strip-{key.replace('_', '-')}", title=label)
            note = wording.FIGURE_NOTES[key]
            if key == "mean_confidence" and (masses := _letter_masses(data)):
                note += f". Letter mass {masses}, the share of all probability that lies on letters"
            stats.append({"label": label, "spans": spans, "strip": strip, "note": note})
    return stats


def _letter_masses(data: ReportData) -> str:
    """Each model's letter mass, where the tables have it."""
    masses = [data.summary[series].get("letter_mass") for series in _predictions(data)]
    return " → ".join(f"{mass:.3f}" for mass in masses if mass is not None)


def _reliability(data: ReportData) -> list[dict[str, Any]]:
    bars = {
        series: reliability_bins(predictions.confidence(), predictions.correct(), n_bins=_n_bins(data))
        for series, predictions in _predictions(data).items()
    }
    most = max(bar.count for side in bars.values() for bar in side)
    return [
        {
            "series": series,
            "bars": side,
            "svg": plots.reliability_diagram(
                side,
                series=series,
                most=most,
                name=f"reliability-{series}",
                title="Reliability diagram"
                if data.after is None
                else f"Reliability diagram, {series} recalibration",
            ),
        }
        for series, side in bars.items()
    ]


def _bounds(regime: Mapping[str, Any]) -> dict[str, Any] | None:
    if not regime:
        return None
    target, tolerance = regime["target_ece"], regime["tolerance"]
    held_out, lower = _interval(regime["debiased_ece"]), _interval(regime["lower_bound"])
    if held_out is None or lower is None:
        return None
    rows = [
        plots.BoundRow(
            label="Calibration error on held-out questions",
            interval=held_out,
            limit=target,
            limit_label="target",
            good=held_out.high <= target,
        ),
        plots.BoundRow(
            label="Lower bound from the fine-tuning questions",
            interval=lower,
            limit=tolerance,
            limit_label="tolerance",
            good=lower.low <= tolerance,
        ),
    ]
    further = {
        label: interval
        for key, label in wording.BOUNDS.items()
        if (interval := _interval(regime.get(key))) is not None
    }
    return {
        "svg": plots.bounds_line(rows, name="bounds", title="Measured bounds against their limits"),
        "reasons": list(regime.get("reasons", ())),
        "regime": wording.REGIMES.get(regime["regime"], regime["regime"]),
        "further": further,
    }


def _comparison(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy against ECE for input, baselines and output; None where there is nothing to compare."""
    models: list[tuple[str, str, Mapping[str, Any]]] = []
    for key, figures in (summary.get("baselines") or {}).items():
        if key != "temperature_scaling":
            models.append((key.replace("_", " ").capitalize(), "baseline", figures))
    models.append(("Input", "before", summary["before"]))
    if scaled := (summary.get("baselines") or {}).get("temperature_scaling"):
        models.append(("Temperature scaling", "temperature", scaled))
    if after := summary.get("after"):
        models.append(("Output", "after", after))
    points, rows = [], []
    for label, kind, figures in models:
        ece, accuracy = _interval(figures.get("conf_ece")), _interval(figures.get("accuracy"))
        if ece is None or accuracy is None:
            continue
        points.append(plots.Point(label=label, kind=kind, ece=ece, accuracy=accuracy))
        temperature = figures.get("temperature")
        rows.append(
            {
                "label": label,
                "kind": kind,
                "note": f"T = {temperature:.2f}" if isinstance(temperature, float) else "",
                "spans": [_interval(figures.get(key)) for key in ("accuracy", "conf_ece", "cw_ece")],
            }
        )
    if len(points) < 2:
        return None
    svg = plots.accuracy_ece(points, name="comparison", title="Accuracy against calibration error")
    return {"svg": svg, "rows": rows}


def _risk_coverage(data: ReportData) -> dict[str, Any]:
    curves: dict[plots.Series, tuple[list[float], list[float]]] = {}
    for series, predictions in _predictions(data).items():
        curve = risk_coverage(predictions.confidence(), predictions.correct())
        # the error rate of a handful of answers is noise, and would set the height of the whole drawing
        first = min(int((curve.coverage * len(predictions) < FEWEST_ANSWERED).sum()), len(curve.coverage) - 1)
        curves[series] = (curve.coverage[first:].tolist(), curve.risk[first:].tolist())
    table = [
        (share, {series: _risk_at(share, *curve) for series, curve in curves.items()})
        for share in (0.25, 0.5, 0.8, 1.0)
    ]
    svg = plots.risk_coverage_curves(
        curves, name="risk-coverage", title="Error rate by share of questions answered"
    )
    return {"svg": svg, "table": table}


def _risk_at(share: float, coverage: Sequence[float], risk: Sequence[float]) -> float:
    """Error rate at the smallest coverage that is at least `share`."""
    return next(r for c, r in zip(coverage, risk, strict=True) if c >= share - 1e-9)


def _subjects(data: ReportData) -> list[dict[str, Any]]:
    """One entry per subject, in the order of the input model's table; empty where there are none."""
    if not any(data.before.subjects):
        return []
    tables = {
        series: per_subject(predictions, n_bins=_n_bins(data))
        for series, predictions in _predictions(data).items()
    }
    entries: dict[str, dict[str, Any]] = {}
    for series, table in tables.items():
        for row in table:
            entry = entries.setdefault(row["subject"], {"subject": row["subject"], "n": row["n"], "rows": {}})
            entry["rows"][series] = {**row, "conf_ece": _interval(row["conf_ece"])}
    return list(entries.values())


def _figure_table(
    group: Mapping[str, Any] | None, *, only: Sequence[str] = (), names: Mapping[str, str] = wording.FIGURES
) -> dict[str, Any] | None:
    """The figures of a group's `before` and `after`, those in `only` or all; None where there are none."""
    sides = {series: group[series] for series in ("before", "after") if group.get(series)} if group else {}
    found = dict.fromkeys(key for figures in sides.values() for key in figures)
    rows = []
    for key in only or found:
        cells = {series: _interval(figures.get(key)) or figures.get(key) for series, figures in sides.items()}
        shown = [value for value in cells.values() if value is not None]
        if shown and all(isinstance(value, Interval | int | float) for value in shown):
            rows.append({"label": names.get(key, key.replace("_", " ").capitalize()), "cells": cells})
    return {"series": list(sides), "rows": rows} if rows else None


def _history(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The curves of a training run, and its first, kept and last evaluation in figures."""
    lines = {
        label: [float(record[key]) for record in history]
        for key, label in wording.HISTORY.items()
        if history and all(record.get(key) is not None for record in history)
    }
    if not lines:
        return None
    chosen = next((index for index, record in enumerate(history) if record.get("chosen")), None)
    steps = [float(record["step"]) for record in history]
    svg = plots.training_history(
        steps,
        lines,
        chosen=chosen,
        unit="Training step",
        name="history",
        title="Figures on the calibration questions during training",
    )
    named = {"First": 0, "Kept": chosen, "Last": len(history) - 1}
    rows = [
        (name, int(steps[index]), [values[index] for values in lines.values()])
        for name, index in named.items()
        if index is not None
    ]
    return {"svg": svg, "labels": list(lines), "rows": rows}


def _appendix(data: ReportData) -> list[tuple[str, list[tuple[str, str]]]]:
    tables = [
        ("Parameters", wording.flat(shown(data.parameters))),
        ("Versions", wording.flat(data.versions)),
        ("Fingerprints of data and models", wording.flat(data.fingerprints)),
        (
            "Time",
            [(name, wording.duration(value)) for name, value in (data.summary.get("timing") or {}).items()],
        ),
    ]
    return [(title, rows) for title, rows in tables if rows]

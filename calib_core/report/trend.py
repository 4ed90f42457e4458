"""The trend: the champion's calibration error at every run, and the line at which a run begins to repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from calib_core.metrics.interval import Interval
from calib_core.report.plots import SHAPES, span_text
from calib_core.report.svg import (
    WIDTH,
    Scale,
    axis_below,
    axis_left,
    drawing,
    element,
    line,
    marker,
    polyline,
    text,
    tick_text,
    ticks,
)

MOST_RUNS = 30
"""Runs that a drawing of this width can tell apart; the newest are drawn."""
TABLE_RUNS = 10
_LEFT, _TOP, _HEIGHT = 34.0, 26.0, 220.0
_OUTCOMES = {
    "calibrated": "calibrated, kept",
    "none": "no repair that is allowed could help, kept",
    "promoted": "new model promoted",
    "refused": "new model refused",
}
_KINDS = {"promoted": "after", "refused": "baseline"}


def trend_section(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the report's section on the trend shows; None without rows.

    Args:
        rows: Runs in their order, as `calib_core.champion.history` keeps them.
    """
    if not rows:
        return None
    first = max(0, len(rows) - TABLE_RUNS)
    table = [
        {
            "number": number,
            "time": f"{row['time']:%Y-%m-%d %H:%M}",
            "n": row["n_test"],
            "spans": [_span(row, "before", key) for key in ("conf_ece", "accuracy")],
            "outcome": _OUTCOMES[_outcome(row)],
        }
        for number, row in enumerate(rows[first:], start=first + 1)
    ]
    return {"svg": trend_line(rows), "rows": table, "alarm": rows[-1]["target_ece"], "n": len(rows)}


def trend_line(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """conf-ECE on each run's new test questions: the champion's as a line, challengers' as marks beside it.

    Args:
        rows: Runs in their order, at least one; the newest `MOST_RUNS` are drawn.
    """
    first = max(0, len(rows) - MOST_RUNS)
    shown = list(enumerate(rows[first:], start=first + 1))
    alarm = rows[-1]["target_ece"]
    spans = [
        span for _, row in shown for side in ("before", "after") if (span := _span(row, side, "conf_ece"))
    ]
    y_values = ticks(0, max(alarm * 1.2, *(span.high for span in spans)))
    x = Scale(first + 0.6, max(len(rows), first + 2) + 0.4, _LEFT, WIDTH - 12)
    y = Scale(0, y_values[-1], _TOP + _HEIGHT, _TOP)
    marks, points, said = [], [], []
    for number, row in shown:
        span = _span(row, "before", "conf_ece")
        if span is None:
            continue
        outcome = _outcome(row)
        tip = f"Run {number}, {row['time']:%Y-%m-%d}: champion {span.value:.3f} ({span_text(span)})"
        points.append((x(number), y(span.value)))
        drawn = _mark(points[-1][0], y, span, "before")
        if after := _span(row, "after", "conf_ece"):
            tip += f", new model {after.value:.3f} ({span_text(after)})"
            drawn += _mark(x(number + 0.16), y, after, _KINDS[outcome])
        tip += f"; {_OUTCOMES[outcome]}"
        said.append(tip)
        marks.append(element("g", element("title", tip), *drawn))
    whole = [value for value in ticks(first + 1, max(len(rows), first + 2)) if value == int(value)]
    return drawing(
        "trend",
        "Calibration error at every run",
        f"Alarm line at {tick_text(alarm)}. " + ". ".join(said),
        y.start + 36,
        element(
            "rect", x=_LEFT, y=y(alarm), width=WIDTH - 12 - _LEFT, height=y.start - y(alarm), class_="allowed"
        ),
        axis_left(y, y_values, _LEFT, WIDTH - 12, "conf-ECE"),
        line(_LEFT, y.start, WIDTH - 12, y.start, "axis"),
        line(_LEFT, y(alarm), WIDTH - 12, y(alarm), "limit"),
        text(WIDTH - 14, y(alarm) - 5, f"alarm {tick_text(alarm)}", "tick limit-label label", anchor="end"),
        polyline(points, "curve before"),
        *marks,
        axis_below(x, [value for value in whole if first + 1 <= value <= len(rows)], y.start, "Run"),
    )


def _mark(cx: float, y: Scale, span: Interval, kind: str) -> list[Markup]:
    return [
        line(cx, y(span.low), cx, y(span.high), f"whisker {kind}"),
        marker(SHAPES[kind], cx, y(span.value), f"mark {kind}"),
    ]


def _outcome(row: Mapping[str, Any]) -> str:
    if row["branch"] == "none":
        return "calibrated" if row["regime"] == "calibrated" else "none"
    return "promoted" if row["promoted"] else "refused"


def _span(row: Mapping[str, Any], side: str, figure: str) -> Interval | None:
    value = row[f"{side}_{figure}"]
    if value is None:
        return None
    return Interval(value=value, low=row[f"{side}_{figure}_low"], high=row[f"{side}_{figure}_high"])

"""The report's plots: pure functions from numbers to SVG strings.

Every plot says its figures in its description too, for readers who can't see it, and shows exact values
where a mark is pointed at (`<title>`). Colour is never the only difference: shapes differ as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from calib_core.metrics.figures import ReliabilityBin
from calib_core.metrics.interval import Interval
from calib_core.report.svg import (
    WIDTH,
    Box,
    Scale,
    axis_below,
    axis_left,
    drawing,
    element,
    freest,
    line,
    marker,
    polyline,
    spread,
    text,
    tick_text,
    ticks,
)

Series = Literal["before", "after"]
SHAPES: Mapping[str, str] = {
    "before": "square",
    "after": "circle",
    "temperature": "diamond",
    "baseline": "triangle",
}
_LEFT, _RIGHT, _TOP = 34.0, WIDTH - 8.0, 26.0
_TENTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FEW = 10
"""Questions below which a bin's accuracy says next to nothing."""
_LABEL_HEIGHT, _LETTER_WIDTH = 15.0, 6.4  # of the 12-unit type of labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model's place in the plane of ECE and accuracy.

    Attributes:
        label: what stands beside the mark.
        kind: a key of SHAPES, which gives shape and colour.
        ece: horizontal, with its interval.
        accuracy: vertical, with its interval.
    """

    label: str
    kind: str
    ece: Interval
    accuracy: Interval


def span_text(interval: Interval, digits: int = 3) -> str:
    """Limits of an interval as they stand in tables: 0.510–0.572."""
    return f"{interval.low:.{digits}f}–{interval.high:.{digits}f}"


def reliability_diagram(
    bars: Sequence[ReliabilityBin], *, series: Series, most: int, name: str, title: str
) -> Markup:
    """Accuracy per confidence bin against the diagonal, with a strip of counts below.

    Empty bins stay empty; bins with fewer than FEW questions are drawn pale.

    Args:
        bars: the bins.
        series: which colour and mark.
        most: the largest count that the strip must hold, so that two diagrams can share its scale.
        name: unique in the page.
        title: what screen readers call it.
    """
    side = _RIGHT - _LEFT
    x, y = Scale(0, 1, _LEFT, _RIGHT), Scale(0, 1, _TOP + side, _TOP)
    base = _TOP + side + 88  # of the strip of counts
    top_count = ticks(0, most, about=2)[-1]
    counts = Scale(0, top_count, base, base - 52)
    columns, said = [], []
    for bar in bars:
        if bar.accuracy is None or bar.mean_confidence is None:
            continue
        low, high = bar.accuracy_low or 0.0, bar.accuracy_high or 0.0
        said.append(
            f"Confidence {bar.left:.2f} to {bar.right:.2f}: {bar.count:,} questions, accuracy "
            f"{bar.accuracy:.3f} ({low:.3f}–{high:.3f}), mean confidence {bar.mean_confidence:.3f}"
        )
        kind = series if bar.count >= FEW else f"{series} few"
        left, width = x(bar.left) + 1, x(bar.right) - x(bar.left) - 2
        middle, top, strip_top = x(bar.mean_confidence), y(bar.accuracy), counts(bar.count)
        columns.append(
            element(
                "g",
                element("title", said[-1]),
                element("rect", x=left, y=top, width=width, height=y(0) - top, class_=f"bar {kind}"),
                element("rect", x=left, y=strip_top, width=width, height=base - strip_top, class_="count"),
                line(middle, y(low), middle, y(high), f"whisker {kind}"),
                marker(SHAPES[series], middle, top, f"mark {kind}", radius=3.6),
            )
        )
    return drawing(
        name,
        title,
        "; ".join(said),
        base + 36,
        axis_left(y, _TENTHS, _LEFT, _RIGHT, "Accuracy"),
        line(x(0), y(0), x(1), y(1), "diagonal"),
        line(_LEFT, counts(top_count), _RIGHT, counts(top_count), "grid"),
        text(_LEFT - 7, counts(top_count) + 4, tick_text(top_count), anchor="end"),
        text(0, counts(top_count) - 12, "Questions", "axis-title"),
        *columns,
        line(_LEFT, y(0), _RIGHT, y(0), "axis"),
        line(_LEFT, base, _RIGHT, base, "axis"),
        axis_below(x, _TENTHS, base, "Confidence"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRow:
    """One line of the bounds' drawing.

    Attributes:
        label: what is measured.
        interval: the measured value.
        limit: the value that it is held against.
        limit_label: what that value is called.
        good: whether the interval lies on the right side of the limit.
    """

    label: str
    interval: Interval
    limit: float
    limit_label: str
    good: bool


def bounds_line(rows: Sequence[BoundRow], *, name: str, title: str) -> Markup:
    """Measured intervals against their limits, one row each, on one axis from zero.

    The stretch from zero to a row's limit is tinted: an interval that ends inside it is within the limit.
    """
    pitch, bar = 92.0, 16.0
    top = max(max(row.interval.high, row.limit) for row in rows)  # limits are above zero, so there is an axis
    values = ticks(0, top * 1.04)
    x = Scale(0, values[-1], 2, WIDTH - 10)
    base = pitch * len(rows) + 4
    drawn = [element("g", line(x(v), 4, x(v), base, "grid")) for v in values]
    for index, row in enumerate(rows):
        middle = pitch * index + 56
        span = row.interval
        state = "within" if row.good else "beyond"
        limit_right = x(row.limit) < WIDTH / 2
        value = f"{span.value:.3f} ({span_text(span)})"
        # the value stands over its interval, kept inside the drawing
        half = len(value) * _LETTER_WIDTH / 2
        centre = min(max(x.clamped(span.value), half), WIDTH - half)
        drawn.append(
            element(
                "g",
                element("title", f"{row.label}: {value}; {row.limit_label} {row.limit:.3f}"),
                text(0, middle - 34, row.label, "label strong"),
                text(centre, middle - 14, value, "label value", anchor="middle"),
                element(
                    "rect",
                    x=x(0),
                    y=middle - bar / 2,
                    width=x(row.limit) - x(0),
                    height=bar,
                    class_="allowed",
                ),
                line(x(row.limit), middle - bar / 2 - 2, x(row.limit), middle + bar / 2 + 2, "limit"),
                text(
                    x(row.limit),
                    middle + bar / 2 + 15,
                    f"{row.limit_label} {tick_text(row.limit)}",
                    "tick limit-label",
                    anchor="start" if limit_right else "end",
                ),
                line(x.clamped(span.low), middle, x.clamped(span.high), middle, f"span {state}"),
                marker("circle", x.clamped(span.value), middle, f"mark {state}", radius=5.0),
            )
        )
    description = "; ".join(
        f"{r.label} {r.interval.value:.3f}, interval {span_text(r.interval)}, {r.limit_label} {r.limit:g}"
        for r in rows
    )
    return drawing(
        name,
        title,
        description,
        base + 36,
        *drawn,
        line(x(0), base, x.end, base, "axis"),
        axis_below(x, values, base, "ECE"),
    )


def accuracy_ece(points: Sequence[Point], *, name: str, title: str) -> Markup:
    """Accuracy against ECE, one mark per model, intervals as crosses. Up and to the left is better."""
    x_values = ticks(0, max(0.01, *(point.ece.high for point in points)))
    y_values = ticks(
        max(0.0, min(point.accuracy.low for point in points) - 0.04),
        min(1.0, max(point.accuracy.high for point in points) + 0.04),
    )
    height = 250.0
    x = Scale(x_values[0], x_values[-1], _LEFT, _RIGHT - 4)
    y = Scale(y_values[0], y_values[-1], _TOP + height, _TOP)
    marks = []
    for point in points:
        cx, cy = x(point.ece.value), y(point.accuracy.value)
        tip = (
            f"{point.label}: ECE {point.ece.value:.3f} ({span_text(point.ece)}), "
            f"accuracy {point.accuracy.value:.3f} ({span_text(point.accuracy)})"
        )
        marks.append(
            element(
                "g",
                element("title", tip),
                line(x(point.ece.low), cy, x(point.ece.high), cy, f"whisker {point.kind}"),
                line(cx, y(point.accuracy.low), cx, y(point.accuracy.high), f"whisker {point.kind}"),
                marker(SHAPES[point.kind], cx, cy, f"mark {point.kind}"),
            )
        )
    description = "; ".join(
        f"{p.label}: ECE {p.ece.value:.3f}, accuracy {p.accuracy.value:.3f}" for p in points
    )
    return drawing(
        name,
        title,
        description,
        y.start + 36,
        axis_left(y, y_values, _LEFT, _RIGHT - 4, "Accuracy"),
        *[line(x(value), y.start, x(value), y.end, "grid") for value in x_values],
        line(x.start, y.start, x.end, y.start, "axis"),
        *marks,
        *_placed_labels(points, x, y),
        axis_below(x, x_values, y.start, "ECE"),
    )


def _placed_labels(points: Sequence[Point], x: Scale, y: Scale) -> list[Markup]:
    """Labels beside their marks, each at the first place that covers least of what is drawn already.

    A place that lies nearer to another mark is taken only where there is no other.
    """
    taken: list[Box] = []
    centres = [(x(point.ece.value), y(point.accuracy.value)) for point in points]
    for point in points:
        cx, cy = x(point.ece.value), y(point.accuracy.value)
        taken.append((cx - 7, cy - 7, cx + 7, cy + 7))
        taken.append((x(point.ece.low), cy - 2, x(point.ece.high), cy + 2))
        taken.append((cx - 2, y(point.accuracy.high), cx + 2, y(point.accuracy.low)))
    labels = []
    for point in points:
        cx, cy = x(point.ece.value), y(point.accuracy.value)
        width = len(point.label) * _LETTER_WIDTH
        reach_x, reach_y = x(point.ece.high) - cx, cy - y(point.accuracy.high)
        lefts = (cx + 10, cx + reach_x + 6, cx - width - 10, cx - width - reach_x - 6, cx - width / 2)
        tops = (
            cy - _LABEL_HEIGHT - 5,
            cy + 5,
            cy - _LABEL_HEIGHT / 2,
            cy - reach_y - _LABEL_HEIGHT - 3,
            cy + reach_y + 3,
        )
        boxes = [(left, top, left + width, top + _LABEL_HEIGHT) for left in lefts for top in tops]
        own = [box for box in boxes if _nearest(box, centres) == (cx, cy)]
        best = freest(own or boxes, taken, frame=(x.start, y.end, x.end, y.start))
        taken.append(best)
        labels.append(text(best[0], best[3] - 3.5, point.label, f"label ink-{point.kind}"))
    return labels


def _nearest(box: Box, places: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The place that a label in the box would be taken to belong to."""
    left, top, right, bottom = box

    def distance(place: tuple[float, float]) -> float:
        return math.hypot(
            max(left - place[0], place[0] - right, 0.0), max(top - place[1], place[1] - bottom, 0.0)
        )

    return min(places, key=distance)


def _stepped(values: Sequence[float], most: int = 240) -> list[int]:
    """Indices of at most `most` + 1 values, evenly spread, the last one among them."""
    step = max(1, -(-len(values) // most))
    return sorted({*range(0, len(values), step), len(values) - 1})


def risk_coverage_curves(
    curves: Mapping[Series, tuple[Sequence[float], Sequence[float]]], *, name: str, title: str
) -> Markup:
    """Error rate among the most confident share of the questions, for every share.

    Args:
        curves: per series coverage and risk, both in [0, 1] and in order of coverage.
        name: unique in the page.
        title: what screen readers call it.
    """
    height = 250.0
    top = max(max(risk) for _, risk in curves.values())
    y_values = ticks(0, max(top, 0.1))
    x, y = Scale(0, 1, _LEFT, _RIGHT - 4), Scale(0, y_values[-1], _TOP + height, _TOP)
    drawn, said = [], []
    for series, (coverage, risk) in curves.items():
        keep = _stepped(coverage)
        drawn.append(polyline([(x(coverage[i]), y(risk[i])) for i in keep], f"curve {series}"))
        drawn.append(marker(SHAPES[series], x(coverage[-1]), y(risk[-1]), f"mark {series}", radius=3.6))
        half = min(range(len(coverage)), key=lambda i: abs(coverage[i] - 0.5))
        said.append(
            f"{series}: error rate {risk[half]:.2f} at half coverage, {risk[-1]:.2f} at full coverage"
        )
    return drawing(
        name,
        title,
        "; ".join(said),
        y.start + 36,
        axis_left(y, y_values, _LEFT, _RIGHT - 4, "Error rate"),
        line(x.start, y.start, x.end, y.start, "axis"),
        *drawn,
        axis_below(x, _TENTHS, y.start, "Share of questions answered"),
    )


def training_history(
    steps: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    chosen: int | None,
    unit: str,
    name: str,
    title: str,
) -> Markup:
    """Figures on the calibration fold at every evaluation of a training run.

    Args:
        steps: where each evaluation stands on the horizontal axis, rising.
        lines: label -> one value in [0, 1] per evaluation, at most three lines.
        chosen: index of the evaluation whose weights were kept.
        unit: name of the horizontal axis.
        name: unique in the page.
        title: what screen readers call it.
    """
    height, right = 230.0, WIDTH - 104  # the lines' names stand at their right ends
    y_values = ticks(0, max(max(values) for values in lines.values()))
    x_values = ticks(min(steps), max(steps), about=4)
    x = Scale(min(steps), max(*steps, min(steps) + 1), _LEFT + 6, right)
    y = Scale(0, y_values[-1], _TOP + height, _TOP)
    drawn = []
    if chosen is not None:
        at = x(steps[chosen])
        near_end = at > (_LEFT + right) / 2
        drawn.append(line(at, y.end - 4, at, y.start, "chosen"))
        drawn.append(
            text(
                at - 5 if near_end else at + 5,
                y.end + 8,
                "kept",
                "tick",
                anchor="end" if near_end else "start",
            )
        )
    heights = spread([y(values[-1]) for values in lines.values()], _LABEL_HEIGHT)
    for rank, ((label, values), label_y) in enumerate(zip(lines.items(), heights, strict=True), start=1):
        points = [(x(step), y(value)) for step, value in zip(steps, values, strict=True)]
        drawn.append(polyline(points, f"curve line-{rank}"))
        for (px, py), step, value in zip(points, steps, values, strict=True):
            tip = element("title", f"{label} {value:.3f} at {unit.lower()} {step:g}")
            drawn.append(element("g", tip, marker("circle", px, py, f"mark line-{rank}", radius=3.0)))
        drawn.append(text(right + 10, label_y + 4, label, f"label ink-line-{rank}"))
    description = "; ".join(f"{label} from {v[0]:.2f} to {v[-1]:.2f}" for label, v in lines.items())
    if chosen is not None:
        description += f"; the weights of {unit.lower()} {steps[chosen]:g} were kept"
    inside = [value for value in x_values if x.low <= value <= x.high]
    return drawing(
        name,
        title,
        description,
        y.start + 36,
        axis_left(y, y_values, _LEFT, right, ""),
        line(_LEFT, y.start, right, y.start, "axis"),
        *drawn,
        axis_below(x, inside, y.start, unit),
    )


def interval_strip(intervals: Mapping[Series, Interval], *, name: str, title: str) -> Markup:
    """One figure in [0, 1] before and after as two marks with their intervals on one line."""
    x = Scale(0, 1, 4, WIDTH - 4)
    marks = [
        element(
            "g",
            element("title", f"{series} {span.value:.3f} ({span_text(span)})"),
            line(x.clamped(span.low), 14, x.clamped(span.high), 14, f"span {series}"),
            marker(SHAPES[series], x.clamped(span.value), 14, f"mark {series}", radius=7),
        )
        for series, span in intervals.items()
    ]
    said = "; ".join(f"{series} {span.value:.3f} ({span_text(span)})" for series, span in intervals.items())
    ends = [line(x(value), 6, x(value), 22, "grid") for value in (0.0, 0.5, 1.0)]
    return drawing(name, title, said, 28, line(x(0), 14, x(1), 14, "axis"), *ends, *marks)

"""SVG elements as escaped strings, linear scales and tick marks: what every plot of the report is drawn with.

Colours and type sizes live in report.css, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 360.0
"""Width of every drawing in its own units: that of a phone, so that its type stays readable there."""

TITLE_BASELINE = 12.0
"""Where the name of the vertical axis stands: above the drawing, level, instead of sideways along it."""


def number(value: float) -> str:
    """Write a coordinate with at most two decimals.

    Example:
        >>> number(12.5), number(3.0), number(-0.001)
        ('12.5', '3', '0')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def element(name: str, *children: str, **attributes: object) -> Markup:
    """Make one SVG element; attribute values and plain strings among the children are escaped.

    Underscores in attribute names become hyphens, one at the end is dropped (`class_`).
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), number(value) if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    )
    return Markup("<{}{}>{}</{}>").format(name, written, Markup("").join(children), name)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, content: str, class_: str = "tick", *, anchor: str = "start") -> Markup:
    """A piece of type; `anchor` is start, middle or end."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    return element("polyline", points=" ".join(f"{number(x)},{number(y)}" for x, y in points), class_=class_)


def marker(shape: str, x: float, y: float, class_: str, *, radius: float = 4.5) -> Markup:
    """A point's mark. Shapes differ as well as colours: circle, square, diamond, triangle."""
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=radius, class_=class_)
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    }[shape]
    points = " ".join(f"{number(x + dx * radius)},{number(y + dy * radius)}" for dx, dy in corners)
    return element("polygon", points=points, class_=class_)


def drawing(name: str, title: str, description: str, height: float, *children: str) -> Markup:
    """The outer element: an image with a name and a description that screen readers say.

    Args:
        name: unique in the page; the ids that tie the description to the image are made from it.
        title: what the drawing shows.
        description: what it says, figures included.
        height: in units of the drawing, WIDTH being the width.
        children: what is drawn.
    """
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *children,
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_=f"plot plot-{name}",
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from data to the drawing.

    Attributes:
        low: the data value at `start`.
        high: the data value at `end`.
        start: coordinate of `low`.
        end: coordinate of `high`.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of a data value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clamped(self, value: float) -> float:
        """The coordinate of the nearest data value that lies on the scale."""
        return self(min(max(value, self.low), self.high))


def ticks(low: float, high: float, *, about: int = 5) -> tuple[float, ...]:
    """Round values at equal steps, the first at or below `low`, the last at or above `high`.

    Example:
        >>> ticks(0.0, 0.57)
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
        >>> ticks(0.0, 312.0, about=2)
        (0.0, 200.0, 400.0)
    """
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= about + 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(index * step, 10) for index in range(first, max(last, first + 1) + 1))


def tick_text(value: float) -> str:
    """A tick's label: no more digits than the value has.

    Example:
        >>> tick_text(0.2), tick_text(1.0), tick_text(0.05)
        ('0.2', '1', '0.05')
    """
    return f"{value:.10g}"


def axis_below(scale: Scale, values: Sequence[float], y: float, title: str) -> Markup:
    """Tick labels under a drawing, and the axis' name at their right end, one line lower."""
    labels = [text(scale(value), y + 15, tick_text(value), anchor="middle") for value in values]
    return element("g", *labels, text(scale.end, y + 31, title, "axis-title", anchor="end"))


def axis_left(scale: Scale, values: Sequence[float], x1: float, x2: float, title: str) -> Markup:
    """Grid lines with tick labels at their left end, and the axis' name above them."""
    rows = [
        element(
            "g",
            line(x1, scale(value), x2, scale(value), "grid"),
            text(x1 - 7, scale(value) + 4, tick_text(value), anchor="end"),
        )
        for value in values
    ]
    name = [text(0, TITLE_BASELINE, title, "axis-title")] if title else []
    return element("g", *rows, *name)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions apart until neighbours are at least `gap` away from each other; the order is kept.

    Example:
        >>> spread([10.0, 12.0, 40.0], 10.0)
        [6.0, 16.0, 40.0]
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    groups: list[list[float]] = []  # [sum of wanted centres, members] of labels that touch
    for index in order:
        groups.append([positions[index], 1.0])
        while len(groups) > 1:
            (sum_a, n_a), (sum_b, n_b) = groups[-2], groups[-1]
            if sum_b / n_b - sum_a / n_a >= gap * (n_a + n_b) / 2:
                break
            groups[-2:] = [[sum_a + sum_b, n_a + n_b]]
    placed: list[float] = []
    for total, members in groups:
        first = total / members - gap * (members - 1) / 2
        placed.extend(first + gap * step for step in range(int(members)))
    result = [0.0] * len(positions)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def overlap(a: Box, b: Box) -> float:
    """Shared area of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def freest(candidates: Sequence[Box], taken: Sequence[Box], *, frame: Box) -> Box:
    """The first of the candidates that covers least of what is taken and reaches least out of the frame."""

    def cost(box: Box) -> float:
        outside = overlap(box, box) - overlap(box, frame)
        return sum(overlap(box, other) for other in taken) + 4 * outside

    return min(candidates, key=cost)

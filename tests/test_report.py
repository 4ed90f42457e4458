import dataclasses
import functools
import math
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from calib_core.decisions.temperature import apply_temperature
from calib_core.metrics.figures import reliability_bins
from calib_core.metrics.interval import Interval
from calib_core.metrics.summary import measure
from calib_core.predictions.table import Predictions
from calib_core.report import ReportData, plots, render_report, svg, trend, wording, write_page, write_report
from calib_core.report.text import metrics_text, report_text, summary_text

HOSTILE = '<script>alert(1)</script> & "co"'
VOID = {"meta", "br", "hr", "img", "input", "link"}
ALWAYS = {"verdict", "figures", "reliability", "risk-coverage", "appendix"}
WHERE_MEASURED = {"bounds", "comparison", "subjects", "out-of-domain", "win-rate", "history"}


def predictions(seed: int, *, accuracy: float, subjects: bool = True) -> Predictions:
    """200 questions of four options, answered with confidences from 0.35 to 0.95 and a fixed accuracy."""
    generator = np.random.default_rng(seed)
    n = 200
    labels = generator.integers(0, 4, n)
    top = np.where(generator.random(n) < accuracy, labels, (labels + 1) % 4)
    confidence = generator.uniform(0.35, 0.95, n)
    probs = np.repeat(((1 - confidence) / 3)[:, None], 4, axis=1)
    probs[np.arange(n), top] = confidence
    names = ("capitals", HOSTILE)
    return Predictions(
        ids=tuple(f"q{i}" for i in range(n)),
        labels=labels,
        logits=np.log(probs).astype(np.float32),
        n_options=np.full(n, 4),
        subjects=tuple(names[i % 2] if subjects else None for i in range(n)),
    )


def interval(value: float, half: float = 0.03) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def regime(name: str = "calibratable", **changes: Any) -> dict[str, Any]:
    return {
        "regime": name,
        "lower_bound": interval(0.01, 0.01),
        "upper_bound": interval(0.55),
        "information_bound": interval(0.8),
        "critical_accuracy": interval(0.26),
        "debiased_ece": interval(0.54),
        "accuracy_fit": interval(0.27),
        "accuracy_heldout": interval(0.27),
        "target_ece": 0.08,
        "tolerance": 0.05,
        "reasons": ["Even the lower limit is above the target of 0.08."],
        **changes,
    }


@functools.cache
def full() -> ReportData:
    before, after = predictions(0, accuracy=0.3), predictions(1, accuracy=0.65)
    figures = {
        "before": measure(before, n_resamples=20).to_dict(),
        "after": measure(after, n_resamples=20).to_dict(),
    }
    history = [
        {
            "step": step,
            "accuracy": 0.3 + step / 1000,
            "mean_confidence": 0.6,
            "conf_ece": 0.2,
            "chosen": step == 200,
        }
        for step in (0, 100, 200, 300)
    ]
    return ReportData(
        title=HOSTILE,
        summary={
            **figures,
            "branch": "cft",
            "promoted": True,
            "reasons": ["Even the lower limit is above the target of 0.08.", HOSTILE],
            "baselines": {
                "temperature_scaling": {**figures["before"], "temperature": 2.5},
                HOSTILE: figures["after"],
            },
            "out_of_domain": figures,
            "win_rate": {
                "before": {"sum": interval(0.7), "n": 120},
                "after": {"sum": interval(0.69), "n": 120},
            },
            "timing": {"evaluate": 75.0},
        },
        before=before,
        after=after,
        regime=regime(),
        history=history,
        parameters={"evaluate": {"shots": 0, "note": HOSTILE}},
        versions={"calib-core": "0.1.0"},
        fingerprints={"data": {"fit": "ab" * 32}},
    )


@functools.cache
def plain() -> ReportData:
    """A table that was measured, and nothing more."""
    before = predictions(0, accuracy=0.3, subjects=False)
    return ReportData(
        title="table",
        summary={"before": measure(before, n_resamples=20).to_dict()},
        before=before,
        regime={},
        parameters={},
        versions={},
        fingerprints={},
    )


class Page(HTMLParser):
    """Collects a page's elements, and fails where one is closed that isn't the last one opened."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.elements if "id" in attributes]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parse(drawing: str) -> ET.Element:
    return ET.fromstring(drawing)  # noqa: S314 - our own drawing


def drawings(page: str) -> list[ET.Element]:
    """Every drawing of a page; ET fails where one isn't well-formed XML."""
    return [parse(found) for found in re.findall(r'<svg [^>]*role="img".*?</svg>', page, flags=re.DOTALL)]


@pytest.mark.parametrize("data", [full(), plain()], ids=["full", "plain"])
def test_page_is_well_formed_and_self_contained(data: ReportData) -> None:
    page = render_report(data)
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    tags = {tag for tag, _ in parsed.elements}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    loading = {"src", "href", "xlink:href", "action", "data", "srcset", "poster", "background"}
    assert not [attributes for _, attributes in parsed.elements if loading & attributes.keys()]
    assert "url(" not in page
    assert "@import" not in page
    assert "://" not in page


def test_every_section_is_there_where_its_data_are() -> None:
    assert set(Page(render_report(full())).ids) >= ALWAYS | WHERE_MEASURED


def test_sections_without_data_are_left_out() -> None:
    ids = set(Page(render_report(plain())).ids)
    assert ids >= ALWAYS
    assert ids.isdisjoint(WHERE_MEASURED)


@pytest.mark.parametrize(
    ("key", "section"),
    [("baselines", None), ("out_of_domain", "out-of-domain"), ("win_rate", "win-rate"), ("timing", None)],
)
def test_a_part_that_was_not_measured_takes_its_section_along(key: str, section: str | None) -> None:
    data = full()
    without = dataclasses.replace(data, summary={**data.summary, key: {}})
    lost = set(Page(render_report(data)).ids) - set(Page(render_report(without)).ids)
    assert {name for name in lost if name in WHERE_MEASURED} == ({section} if section else set())


def test_text_of_users_is_escaped_everywhere() -> None:
    page = render_report(full())
    assert "<script" not in page
    # title and h1, reason, baseline (label, tip, description, table), subject, parameter
    assert Page(page).text.count(HOSTILE) >= 7


def test_numbers_of_the_summary_are_shown() -> None:
    data = full()
    shown = Page(render_report(data)).text
    for side in ("before", "after"):
        for key in ("accuracy", "mean_confidence", "conf_ece", "cw_ece"):
            figure = data.summary[side][key]
            assert f"{figure['value']:.3f} {figure['low']:.3f}–{figure['high']:.3f}" in shown
    assert "T = 2.50" in shown
    assert "1 min 15 s" in shown
    assert "Pairs 120 120" in shown


def test_bins_are_those_of_the_summary() -> None:
    data = plain()
    twenty = {"before": {**data.summary["before"], "n_bins": 20}}
    page = render_report(dataclasses.replace(data, summary=twenty))
    bars = [e for e in drawings(page)[4].iter("rect") if "bar" in e.attrib["class"]]
    expected = reliability_bins(data.before.confidence(), data.before.correct(), n_bins=20)
    assert len(bars) == sum(1 for bar in expected if bar.count)


def test_write_page_writes_what_render_report_makes(tmp_path: Any) -> None:
    data = plain()
    write_page(data, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(data)


@pytest.mark.parametrize("data", [full(), plain()], ids=["full", "plain"])
def test_drawings_are_named_described_and_free_of_nan(data: ReportData) -> None:
    found = drawings(render_report(data))
    assert len(found) == (4 + 6 if data.after is not None else 4 + 2)
    for drawing in found:
        ids = {child.attrib.get("id"): child.text for child in drawing}
        assert all(ids[name] for name in drawing.attrib["aria-labelledby"].split())
        assert "nan" not in ET.tostring(drawing, encoding="unicode").lower()


# -- the verdict's words


@pytest.mark.parametrize(
    ("changes", "name", "status", "said"),
    [
        ({}, "calibratable", "Promoted", "CFT (fine-tuning on the answers) was chosen"),
        ({"promoted": False}, "calibratable", "Kept", "did not pass the gate"),
        ({"branch": "rcft"}, "non_calibratable", "Promoted", "has memorised answers"),
        ({"branch": "rcft"}, "calibratable", "Promoted", "was the last branch"),
        ({"branch": "none", "after": None, "promoted": False}, "calibrated", "Kept", "No branch was taken"),
    ],
)
def test_verdict_names_outcome_and_branch(changes: dict[str, Any], name: str, status: str, said: str) -> None:
    verdict = wording.verdict({**full().summary, **changes}, regime(name))
    assert verdict.status == status
    assert said in " ".join([verdict.headline, *verdict.sentences])


def test_two_tables_without_a_run_are_judged_and_nothing_is_promoted_or_kept() -> None:
    for passes, said in ((True, "The second model passes the gate"), (False, "does not pass the gate")):
        summary = {"before": full().summary["before"], "after": full().summary["after"], "promoted": passes}
        verdict = wording.verdict(summary, {})
        assert verdict.status == "Compared"
        assert said in verdict.headline
        assert not {"promoted", "kept", "input", "new"} & set(" ".join(verdict.sentences).lower().split())


def test_a_confidence_that_tells_nothing_and_a_low_letter_mass_are_said_first(tmp_path) -> None:
    table = predictions(1, accuracy=0.3, subjects=False)
    mass = np.full(len(table), 0.2, dtype=np.float32)
    flat = dataclasses.replace(apply_temperature(table, 100.0), letter_mass=mass)
    said = write_report(tmp_path / "report.html", before=table, after=flat, n_resamples=20)
    low, empty = said["cautions"]
    assert low.startswith("The second model doesn't answer with letters here: its letter mass is 0.200")
    assert "evaluate with `prompt_form=auto`" in low
    assert empty.startswith("The second model's confidence carries no information")
    page = (tmp_path / "report.html").read_text()
    assert page.index("carries no information") < page.index("is right on")
    assert "Letter mass 0.200, the share of all probability" in page
    assert report_text({**said, "report": ""}).startswith(f"caution: {low}\ncaution: {empty}\n")
    measured = measure(flat, n_resamples=20).to_dict()
    assert metrics_text(measured).startswith("caution: The model doesn't answer with letters here")


def test_cautions_of_a_run_come_first() -> None:
    summary = {**full().summary, "cautions": ["Mind this."]}
    assert wording.verdict(summary, regime()).sentences[0] == "Mind this."
    assert summary_text({**summary, "model": "m", "report": "r", "regime": "calibratable"}).startswith(
        "caution: Mind this."
    )


def test_verdict_of_a_measured_table_states_accuracy_and_confidence() -> None:
    summary = {"before": {"accuracy": interval(0.274), "mean_confidence": interval(0.806)}}
    verdict = wording.verdict(summary, {})
    assert verdict.status == "Measured"
    assert (
        verdict.headline == "The model is right on 27\u00a0% of the questions and 81\u00a0% sure on average."
    )
    assert verdict.sentences == []


def test_reasons_of_the_regime_are_not_said_twice() -> None:
    page = Page(render_report(full())).text
    assert page.count("Even the lower limit is above the target of 0.08.") == 1


# -- geometry


def by_class(drawing: str, tag: str, class_: str) -> list[dict[str, float]]:
    numbers = ("x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy")
    return [
        {key: float(value) for key, value in found.attrib.items() if key in numbers}
        for found in parse(drawing).iter(tag)
        if class_ in found.attrib.get("class", "").split()
    ]


def test_bars_of_a_reliability_diagram_are_as_high_as_their_values() -> None:
    confidence = np.array([0.65] * 40 + [0.95] * 20)
    correct = np.array([1] * 10 + [0] * 30 + [1] * 15 + [0] * 5, dtype=float)  # accuracy 0.25 and 0.75
    bars = reliability_bins(confidence, correct)
    drawn = plots.reliability_diagram(bars, series="before", most=60, name="r", title="R")
    low, high = by_class(drawn, "rect", "bar")
    assert high["height"] == pytest.approx(3 * low["height"], abs=0.02)
    few, many = sorted(rect["height"] for rect in by_class(drawn, "rect", "count"))
    assert many == pytest.approx(2 * few, abs=0.02)
    # the diagonal spans the unit square: a bar's height over the square's side is the accuracy itself
    (diagonal,) = by_class(drawn, "line", "diagonal")
    side = diagonal["y1"] - diagonal["y2"]
    assert low["height"] / side == pytest.approx(0.25, abs=1e-4)
    assert low["y"] + low["height"] == pytest.approx(diagonal["y1"], abs=0.02)
    whiskers = by_class(drawn, "line", "whisker")
    for whisker, bar in zip(whiskers, [b for b in bars if b.count], strict=True):
        assert (diagonal["y1"] - whisker["y1"]) / side == pytest.approx(bar.accuracy_low, abs=1e-4)
        assert (diagonal["y1"] - whisker["y2"]) / side == pytest.approx(bar.accuracy_high, abs=1e-4)
        assert (whisker["x1"] - diagonal["x1"]) / side == pytest.approx(bar.mean_confidence, abs=1e-4)


def test_bins_with_few_questions_are_pale() -> None:
    confidence = np.array([0.65] * 10 + [0.95] * 9)
    drawn = plots.reliability_diagram(
        reliability_bins(confidence, np.ones(19)), series="after", most=10, name="r", title="R"
    )
    assert len(by_class(drawn, "rect", "bar")) == 2
    (pale,) = by_class(drawn, "rect", "few")
    assert pale["x"] > plots.WIDTH / 2


@pytest.mark.parametrize(("high", "state"), [(0.08, "within"), (0.081, "beyond")])
def test_bounds_line_puts_the_interval_beside_its_limit(high: float, state: str) -> None:
    row = plots.BoundRow(
        label="ECE", interval=Interval(0.04, 0.02, high), limit=0.08, limit_label="target", good=high <= 0.08
    )
    drawn = plots.bounds_line([row], name="b", title="B")
    (limit,) = by_class(drawn, "line", "limit")
    (span,) = by_class(drawn, "line", state)
    assert (span["x2"] <= limit["x1"]) == (state == "within")
    (allowed,) = by_class(drawn, "rect", "allowed")
    assert allowed["x"] + allowed["width"] == pytest.approx(limit["x1"], abs=0.02)
    (mark,) = by_class(drawn, "circle", state)
    assert (mark["cx"] - allowed["x"]) / allowed["width"] == pytest.approx(0.5, abs=1e-3)


def test_lower_bound_is_beyond_only_where_its_whole_interval_is() -> None:
    def states(low: float) -> list[str]:
        lower = {"value": 0.1, "low": low, "high": 0.15}
        page = render_report(dataclasses.replace(full(), regime=regime(lower_bound=lower)))
        bounds = next(d for d in drawings(page) if "plot-bounds" in d.attrib["class"])
        return [found.attrib["class"] for found in bounds.iter("circle")]

    assert states(0.04) == ["mark beyond", "mark within"]
    assert states(0.06) == ["mark beyond", "mark beyond"]


def test_labels_of_the_scatter_keep_off_each_other_and_inside() -> None:
    places = [(0.06, 0.28), (0.05, 0.27), (0.54, 0.27), (0.03, 0.8), (0.04, 0.79)]
    points = [
        plots.Point(
            label=f"Model number {index}",
            kind="baseline",
            ece=Interval(ece, ece - 0.02, ece + 0.02),
            accuracy=Interval(accuracy, accuracy - 0.03, accuracy + 0.03),
        )
        for index, (ece, accuracy) in enumerate(places)
    ]
    drawn = parse(plots.accuracy_ece(points, name="s", title="S"))
    labels = [found for found in drawn.iter("text") if "label" in found.attrib["class"].split()]
    boxes = [
        (
            float(label.attrib["x"]),
            float(label.attrib["y"]) - 11,
            float(label.attrib["x"]) + 90,
            float(label.attrib["y"]),
        )
        for label in labels
    ]
    assert len(boxes) == 5
    for index, box in enumerate(boxes):
        assert box[0] >= 0
        assert box[2] <= plots.WIDTH
        assert all(svg.overlap(box, other) == 0 for other in boxes[index + 1 :])


def test_labels_of_the_scatter_lie_by_their_own_marks() -> None:
    figures = {"Unaligned": (0.593, 0.234), "Input": (0.702, 0.236), "Output": (0.023, 0.714)}
    points = [
        plots.Point(
            label=name,
            kind="before",
            ece=Interval(ece, max(0.0, ece - 0.03), ece + 0.03),
            accuracy=Interval(accuracy, accuracy - 0.03, accuracy + 0.03),
        )
        for name, (ece, accuracy) in figures.items()
    ]
    drawn = parse(plots.accuracy_ece(points, name="s", title="S"))
    marks = [
        tuple(float(value) + 4 for value in mark.attrib["points"].split()[0].split(","))
        for mark in drawn.iter("polygon")
        if "mark" in mark.attrib["class"].split()
    ]
    labels = [found for found in drawn.iter("text") if "label" in found.attrib["class"].split()]
    assert [label.text for label in labels] == list(figures)
    for index, label in enumerate(labels):
        left, bottom = float(label.attrib["x"]), float(label.attrib["y"])
        middle = (left + 3.2 * len(str(label.text)), bottom - 5)
        assert min(range(3), key=lambda mark: math.dist(marks[mark], middle)) == index


def test_risk_coverage_curve_ends_at_the_error_rate() -> None:
    drawn = plots.risk_coverage_curves({"before": ([0.5, 1.0], [0.2, 0.4])}, name="c", title="C")
    (points,) = [found.attrib["points"] for found in parse(drawn).iter("polyline")]
    (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in points.split())
    (axis,) = by_class(drawn, "line", "axis")
    assert (axis["y1"] - y2) == pytest.approx(2 * (axis["y1"] - y1), abs=0.02)
    assert x2 == pytest.approx(axis["x2"], abs=0.01)
    assert x1 == pytest.approx((axis["x1"] + axis["x2"]) / 2, abs=0.01)


def test_history_marks_the_kept_evaluation() -> None:
    drawn = plots.training_history(
        [0, 100, 200], {"Accuracy": [0.2, 0.4, 0.6]}, chosen=1, unit="Step", name="h", title="H"
    )
    (kept,) = by_class(drawn, "line", "chosen")
    marks = by_class(drawn, "circle", "mark")
    assert kept["x1"] == marks[1]["cx"]
    assert marks[0]["cy"] - marks[1]["cy"] == pytest.approx(marks[1]["cy"] - marks[2]["cy"], abs=0.02)


def test_one_evaluation_alone_can_be_drawn() -> None:
    drawn = plots.training_history([0], {"Accuracy": [0.2]}, chosen=0, unit="Step", name="h", title="H")
    assert len(by_class(drawn, "circle", "mark")) == 1
    assert "nan" not in drawn


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.13, 0.91), (0.0, 3e-4), (0.0, 4096.0), (0.5, 0.5)])
def test_ticks_enclose_their_range_in_few_equal_steps(low: float, high: float) -> None:
    values = svg.ticks(low, high)
    assert values[0] <= low + 1e-9
    assert values[-1] >= high - 1e-9
    assert 2 <= len(values) <= 8
    assert np.diff(values) == pytest.approx(np.diff(values)[0])


def test_spread_keeps_the_order_and_the_gap() -> None:
    placed = svg.spread([50.0, 49.0, 51.0, 10.0, 120.0], 15.0)
    order = np.argsort(placed)
    assert order.tolist() == [3, 1, 0, 2, 4]
    assert np.diff(np.array(placed)[order]).min() >= 15.0 - 1e-9
    assert placed[3] == 10.0


def run_row(number: int, **changes: Any) -> dict[str, Any]:
    """A run's row of figures, calibrated and kept if nothing else is said."""
    row: dict[str, Any] = {
        "time": datetime(2026, 7, number, 8, 0, tzinfo=UTC),
        "n_test": 1200,
        "branch": "none",
        "regime": "calibrated",
        "promoted": False,
        "target_ece": 0.08,
    }
    for side, value in (("before", 0.05), ("after", None)):
        for figure in ("conf_ece", "accuracy"):
            row |= {f"{side}_{figure}{end}": value for end in ("", "_low", "_high")}
    return {**row, **changes}


def measured(side: str, ece: float) -> dict[str, float]:
    return {
        f"{side}_conf_ece": ece,
        f"{side}_conf_ece_low": ece - 0.02,
        f"{side}_conf_ece_high": ece + 0.02,
        f"{side}_accuracy": 0.7,
        f"{side}_accuracy_low": 0.68,
        f"{side}_accuracy_high": 0.72,
    }


TREND = [
    run_row(1),
    run_row(2, branch="cft", promoted=True, **measured("before", 0.3), **measured("after", 0.06)),
    run_row(3, branch="rcft", **measured("before", 0.2), **measured("after", 0.19)),
]


def test_trend_shows_every_run_against_the_alarm_line():
    page = render_report(dataclasses.replace(full(), trend=TREND))
    assert 'id="trend"' in page
    assert "3 so far" in page
    drawn = str(trend.trend_line(TREND))
    root = ET.fromstring(drawn)  # noqa: S314 - our own drawing
    said = root.findtext("desc")
    assert said.startswith("Alarm line at 0.08. Run 1, 2026-07-01: champion 0.050")
    assert "new model 0.060 (0.040–0.080); new model promoted" in said
    assert "new model 0.190 (0.170–0.210); new model refused" in said
    assert "alarm 0.08" in drawn
    marks = [mark.get("class") for mark in root.iter() if (mark.get("class") or "").startswith("mark")]
    assert marks == ["mark before", "mark before", "mark after", "mark before", "mark baseline"]
    (limit,) = [mark for mark in root.iter("line") if mark.get("class") == "limit"]
    squares = [mark for mark in root.iter("polygon") if mark.get("class") == "mark before"]
    heights = [float(square.get("points").split()[0].split(",")[1]) for square in squares]
    alarm = float(limit.get("y1"))
    assert heights[1] < heights[2] < alarm < heights[0]  # the smaller y, the larger the error


def test_trend_keeps_to_the_newest_runs():
    many = [run_row(1 + number % 28) for number in range(100)]
    drawn = ET.fromstring(str(trend.trend_line(many)))  # noqa: S314 - our own drawing
    assert len(drawn.findall("./g/polygon")) == trend.MOST_RUNS
    assert drawn.findtext("desc").count("Run ") == trend.MOST_RUNS
    section = trend.trend_section(many)
    assert [row["number"] for row in section["rows"]] == list(range(91, 101))
    assert trend.trend_section([]) is None

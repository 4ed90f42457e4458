"""The study's tables and plots, from its JSON files alone.

    python benchmarks/study/tables.py results --out study

writes `tables.md` and `plots.html`. A figure is the mean over seeds; its interval has the questions' share of
the error (the mean of the runs' intervals: the seeds share their questions) and the seeds' (their spread).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import escape
from methods import BRANCHES, METHODS
from readings import READINGS

from calib_core.metrics.interval import Interval
from calib_core.report import plots

FIGURES = {
    "accuracy": "accuracy",
    "conf_ece": "conf-ECE",
    "cw_ece": "cw-ECE",
    "adaptive_ece": "equal-mass ECE",
    "brier": "Brier",
    "nll_nats": "NLL",
    "auroc": "AUROC",
    "aurc": "AURC",
}
STYLES = Path(plots.__file__).with_name("report.css")

Result = dict[str, Any]
Place = tuple[str, str]  # model, data set
Way = tuple[str, str]  # method, orders of the options


@dataclass(frozen=True)
class Group:
    """The runs of one method in one place, over seeds."""

    place: Place
    way: Way
    runs: tuple[Result, ...]

    def figure(self, reading: str, questions: str, name: str) -> Interval | None:
        """A figure's mean over seeds; None where it isn't there for every one."""
        found = [run["figures"][reading].get(questions, {}).get(name) for run in self.runs]
        return None if None in found else mean_of_seeds(found)


def mean_of_seeds(values: Sequence[Mapping[str, float] | float]) -> Interval:
    """Mean of a figure over seeds, with the interval that questions and seeds give it."""
    numbers = np.array([value["value"] if isinstance(value, Mapping) else value for value in values])
    half = np.array(
        [(value["high"] - value["low"]) / 2 if isinstance(value, Mapping) else 0.0 for value in values]
    )
    of_seeds = 1.96**2 * numbers.var(ddof=1) / len(numbers) if len(numbers) > 1 else 0.0
    width = math.sqrt(float((half**2).mean()) + of_seeds)
    mean = float(numbers.mean())
    return Interval(mean, mean - width, mean + width)


def read_results(folder: Path) -> list[Group]:
    """The runs of a folder, by place and way, in the order of `METHODS`."""
    found: dict[tuple[Place, Way], list[Result]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        spec = result["run"]
        found[(spec["model"], spec["data"]), (spec["method"], spec["orders"])].append(result)
    order = list(METHODS)
    return [
        Group(place, way, tuple(runs))
        for (place, way), runs in sorted(
            found.items(), key=lambda item: (item[0][0], order.index(item[0][1][0]), item[0][1][1])
        )
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown(value: Interval | None) -> str:
    """A figure, with its interval where one is known; or a dash."""
    if value is None or value.low == value.high:
        return "–" if value is None else f"{value.value:.3f}"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def figures_table(groups: Sequence[Group], questions: str, reading: str) -> str:
    """Every method's figures on one set of questions, read in one way."""
    rows = []
    for group in groups:
        seeds = str(len(group.runs))
        cells = [shown(group.figure(reading, questions, name)) for name in FIGURES]
        rows.append([*group.way, seeds, *cells])
    return table(["method", "orders", "seeds", *FIGURES.values()], rows)


def alignment_table(groups: Sequence[Group]) -> str:
    """What is left of the alignment, and what a run took."""

    def mean(runs: Sequence[Result], *keys: str) -> str:
        values = []
        for run in runs:
            value: Any = run
            for key in keys:
                value = None if value is None else value[key]
            values.append(value)
        return "–" if None in values else f"{np.mean(values):.3f}"

    rows = [
        [
            *group.way,
            mean(group.runs, "win_rate", "accuracy", "value"),
            mean(group.runs, "perplexity"),
            mean(group.runs, "recorded_temperature"),
            mean(group.runs, "seconds", "training"),
            ", ".join(sorted({run["regime"]["regime"] for run in group.runs})),
        ]
        for group in groups
    ]
    columns = [
        "method",
        "orders",
        "win rate",
        "perplexity",
        "temperature",
        "seconds of training",
        "regime after",
    ]
    return table(columns, rows)


def choice_table(groups: Sequence[Group]) -> str:
    """The library's answer for the untouched model beside the best one, by NLL on the test questions."""
    by_method = {group.way[0]: group for group in groups if group.way[1] == METHODS[group.way[0]].orders[0]}
    scores: dict[str, dict[int, float]] = {}
    for branch, (method, reading) in BRANCHES.items():
        if method in by_method:
            scores[branch] = {
                run["run"]["seed"]: run["figures"][reading]["test"]["nll_nats"]["value"]
                for run in by_method[method].runs
            }
    rows = []
    for run in by_method["untouched"].runs if "untouched" in by_method else ():
        seed, chosen = run["run"]["seed"], run["regime"]["branch"]
        known = {branch: values[seed] for branch, values in scores.items() if seed in values}
        best = min(known, key=known.__getitem__)
        regret = f"{known[chosen] - known[best]:.3f}" if chosen in known else "–"
        rows.append([str(seed), chosen, best, regret, ", ".join(f"{b} {v:.3f}" for b, v in known.items())])
    return table(["seed", "chosen", "best", "regret (NLL)", "all"], rows)


def tables(groups: Sequence[Group]) -> str:
    """All tables as a page in Markdown."""
    parts = ["# The study", "", "Made by `benchmarks/study/tables.py` from the runs' JSON files."]
    for place in dict.fromkeys(group.place for group in groups):
        here = [group for group in groups if group.place == place]
        first = here[0].runs[0]
        made = ", ".join(f"{name}={value}" for name, value in first["settings"].items()) or "the defaults"
        parts += [
            "",
            f"## {place[0]} on {place[1]}",
            "",
            f"Settings: {made}. Device: {first['environment']['device']}.",
        ]
        sets = dict.fromkeys(name for group in here for name in group.runs[0]["figures"]["raw"])
        for questions in sets:
            for reading in READINGS:
                parts += ["", f"### {questions}, {reading}", "", figures_table(here, questions, reading)]
        parts += ["", "### Alignment and cost", "", alignment_table(here)]
        parts += ["", "### The automatic choice", "", choice_table(here)]
    return "\n".join(parts) + "\n"


def page(groups: Sequence[Group]) -> str:
    """All plots as one HTML page: accuracy against ECE, and every run's way there."""
    parts = []
    for number, place in enumerate(dict.fromkeys(group.place for group in groups)):
        here = [group for group in groups if group.place == place]
        parts.append(f"<h2>{escape(' on '.join(place))}</h2>")
        points = []
        for group in here:
            ece, accuracy = (group.figure("default", "test", name) for name in ("conf_ece", "accuracy"))
            kind = "before" if group.way[0] == "untouched" else "after"
            if ece and accuracy:
                points.append(plots.Point(label=", ".join(group.way), kind=kind, ece=ece, accuracy=accuracy))
        parts.append(
            plots.accuracy_ece(points, name=f"plane-{number}", title=f"Test questions of {place[1]}")
        )
        for index, group in enumerate(here):
            parts += [way_there(run, f"{number}-{index}-{seed}") for seed, run in enumerate(group.runs)]
    styles = STYLES.read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><title>The study</title><style>{styles}</style>'
    body = "\n".join(map(str, parts))
    return f"<!doctype html>{head}<main>{body}</main>\n"


def way_there(run: Result, name: str) -> str:
    """A run's evaluations of the calibration fold, with the regime that it ended in."""
    history = run["history"]
    if not history:
        return ""
    kept = [index for index, point in enumerate(history) if point["chosen"]]
    spec = run["run"]
    title = f"{spec['method']}, {spec['orders']}, seed {spec['seed']}: {run['regime']['regime']}"
    lines = {
        label: [point[key] for point in history]
        for label, key in (
            ("accuracy", "accuracy"),
            ("confidence", "mean_confidence"),
            ("conf-ECE", "conf_ece"),
        )
    }
    drawn = plots.training_history(
        [point["epoch"] for point in history], lines, chosen=kept[-1], unit="Epoch", name=name, title=title
    )
    return f"<h3>{escape(title)}</h3>{drawn}"


def main() -> None:
    """Read everything and write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    groups = read_results(given.results)
    if not groups:
        parser.error(f"{given.results}: no results")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "tables.md").write_text(tables(groups), encoding="utf-8")
    (given.out / "plots.html").write_text(page(groups), encoding="utf-8")


if __name__ == "__main__":
    main()

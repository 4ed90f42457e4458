"""Results as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calib_core.champion.history import HEADLINE_FIGURES
from calib_core.report.cautions import letter_mass_caution
from calib_core.report.wording import FIGURES, NOT_DECIDABLE, gate_text

SHOWN = (*HEADLINE_FIGURES, "letter_mass")


def figure(value: Any) -> str:
    """A figure with its interval, or a number, or a dash.

    Example:
        >>> figure({"value": 0.26, "low": 0.21, "high": 0.31})
        '0.260 (0.210 to 0.310)'
    """
    if isinstance(value, Mapping):
        low, high = ("?" if value[end] is None else f"{value[end]:.3f}" for end in ("low", "high"))
        return f"{value['value']:.3f} ({low} to {high})"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def figures_table(columns: Mapping[str, Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """One line per figure, one column per table of figures.

    Args:
        columns: heading -> figures by name.
        names: figures to show, in order; all that the first column has if left out.
    """
    shown = names or [name for name in FIGURES if name in next(iter(columns.values()))]
    rows = [["", *columns]] + [
        [FIGURES.get(name, name), *(figure(figures.get(name)) for figures in columns.values())]
        for name in shown
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def summary_text(summary: Mapping[str, Any]) -> str:
    """A run's summary: what was decided, the figures behind it, and where things are."""
    columns = {"before": summary["before"]}
    if unaligned := summary["baselines"].get("unaligned"):
        columns = {"before alignment": unaligned, "aligned": summary["before"]}
    if scaled := summary["baselines"].get("temperature_scaling"):
        columns["temperature scaling"] = scaled
    if summary["branch"] != "none":
        columns["after"] = summary["after"]
    promoted = "yes" if summary["promoted"] else "no"
    if summary["branch"] == "none":
        promoted = "nothing to promote"
    lines = [
        f"regime: {summary['regime']}   branch: {summary['branch']}   promoted: {promoted}",
        "",
        figures_table(columns, SHOWN),
        "",
        *(f"- {reason}" for reason in summary["reasons"]),
        "",
        f"model:  {summary['model']}",
        f"report: {summary['report']}",
    ]
    return with_cautions(summary, "\n".join(lines))


def with_cautions(result: Mapping[str, Any], text: str) -> str:
    """A result's text, after what must be said first."""
    return "\n".join([*(f"caution: {sentence}" for sentence in result.get("cautions", ())), text])


def regime_text(result: Mapping[str, Any]) -> str:
    """A regime with the reasons for it."""
    regime = "not decidable" if result["regime"] == NOT_DECIDABLE else result["regime"]
    return "\n".join([f"regime: {regime}", *(f"- {reason}" for reason in result["reasons"])])


def evaluation_text(result: Mapping[str, Any]) -> str:
    """An evaluation: the regime, and the headline figures of every fold."""
    text = f"{regime_text(result['regime'])}\n\n{figures_table(result['figures'], SHOWN)}"
    return with_cautions(result, text)


def scoring_text(result: Mapping[str, Any]) -> str:
    """A shard that was scored: what must be said first, and the rest line by line."""
    return with_cautions(result, result_text({k: v for k, v in result.items() if k != "cautions"}))


def metrics_text(figures: Mapping[str, Any]) -> str:
    """All figures of a table."""
    caution = letter_mass_caution(figures["letter_mass"])
    text = figures_table({f"n = {figures['n']}": figures})
    return with_cautions({"cautions": [caution] if caution else []}, text)


def measurement_text(result: Mapping[str, Any]) -> str:
    """A table's figures, the regime where it was asked for, and where the report is."""
    lines = [figures_table({f"n = {result['figures']['n']}": result["figures"]}), ""]
    if result["regime"]:
        lines += [regime_text(result["regime"]), ""]
    return with_cautions(result, "\n".join([*lines, f"report: {result['report']}"]))


def report_text(result: Mapping[str, Any]) -> str:
    """What a report on tables shows: all figures, the gate's judgement of two tables, the file."""
    columns = {"measured": result["before"]}
    if "after" in result:
        columns = {"before": result["before"], "after": result["after"]}
    reasons = [f"- {reason}" for reason in result.get("reasons", ())]
    if "promoted" in result:
        reasons.insert(0, f"- {gate_text(passes=result['promoted'])}")
    text = "\n".join([figures_table(columns), "", *reasons, f"report: {result['report']}"])
    return with_cautions(result, text)


def result_text(result: Mapping[str, Any]) -> str:
    """Any other result: one line per value, nested names joined by dots; lists by their length."""
    lines = []
    for key, value in result.items():
        if key == "parameters":
            continue
        if isinstance(value, Mapping) and not {"value", "low", "high"} <= value.keys():
            lines += [f"{key}.{line}" for line in result_text(value).splitlines()]
        elif isinstance(value, list | tuple):
            lines.append(f"{key}: {len(value)}")
        else:
            lines.append(f"{key}: {figure(value)}")
    return "\n".join(lines)

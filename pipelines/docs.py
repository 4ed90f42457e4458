"""Write the tables of inputs and outputs in the READMEs, and the table of the rules about packages.

Run as `python -m calib_pipelines.docs`. The tables stand between two marker lines; the rest of a README is
written by hand and stays.
"""

from __future__ import annotations

from pathlib import Path

from kfp.dsl.base_component import BaseComponent

import calib_components
import calib_pipelines
from calib_pipelines.definitions.recalibrate import recalibrate
from calib_pipelines.definitions.restore_calibration import restore_calibration
from calib_pipelines.definitions.score_large import score_large
from calib_pipelines.packages.checking import RULES
from calib_pipelines.packages.rules import BACKENDS

START, END = "<!-- tables: written by `make docs` -->", "<!-- end of tables -->"


def tables(component: BaseComponent) -> str:
    """Markdown tables of the inputs and outputs of a component or pipeline."""
    spec = component.component_spec
    rows = ["| input | type | default | what it is |", "|---|---|---|---|"]
    for name, given in (spec.inputs or {}).items():
        default = (
            "required"
            if not given.optional
            else "not given"
            if given.default is None
            else f"`{given.default!r}`"
        )
        rows.append(f"| `{name}` | {_kind(given.type)} | {default} | {_line(given.description)} |")
    rows += ["", "| output | type | what it is |", "|---|---|---|"]
    for name, made in (spec.outputs or {}).items():
        rows.append(f"| `{name}` | {_kind(made.type)} | {_line(made.description)} |")
    return "\n".join(rows)


def _kind(name: str) -> str:
    """A type as people know it: `system.Model@0.0.1` is a Model."""
    return name.removeprefix("system.").removeprefix("typing.").partition("@")[0]


def _line(text: str | None) -> str:
    """A description on one line, safe in a table's cell."""
    return " ".join((text or "").split()).replace("|", "\\|")


def rules() -> str:
    """Markdown table of the rules that packages for Kubeflow are checked against."""
    rows = ["| rule | what the backend does | what to do | source |", "|---|---|---|---|"]
    for rule in RULES["kubeflow"]:
        only = "" if rule.versions == BACKENDS else f" (KFP {', '.join(rule.versions)})"
        told = "" if rule.refuses else " Told, not refused."
        cells = (f"`{rule.id}`", f"{rule.text}{only}.{told}", rule.remedy, rule.source)
        rows.append(f"| {' | '.join(map(_line, cells))} |")
    return "\n".join(rows)


def with_tables(page: str, written: str) -> str:
    """A page's text with its tables rewritten.

    Raises:
        ValueError: the marker lines are missing.
    """
    head, start, rest = page.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the lines {START} and {END} are missing in a page that begins with {page[:40]!r}")
    return f"{head}{START}\n{written}\n{END}{tail}"


def readmes() -> dict[Path, BaseComponent]:
    """Every README with tables, and what they describe."""
    root = Path(calib_components.__file__).parent
    found: dict[Path, BaseComponent] = {
        root / name / "README.md": getattr(calib_components, name) for name in calib_components.__all__
    }
    pipelines = Path(calib_pipelines.__file__).resolve().parent
    found[pipelines / "README.md"] = restore_calibration
    found[pipelines / "score-large.md"] = score_large
    found[pipelines.parent / "docs" / "recalibration.md"] = recalibrate
    return found


def pages() -> dict[Path, str]:
    """Every page with tables, and what they are to be."""
    written = {path: tables(component) for path, component in readmes().items()}
    return {
        **written,
        Path(calib_pipelines.__file__).resolve().parents[1] / "docs" / "backend-rules.md": rules(),
    }


def main() -> None:
    """Rewrite all tables."""
    for path, written in pages().items():
        path.write_text(with_tables(path.read_text(encoding="utf-8"), written), encoding="utf-8")


if __name__ == "__main__":
    main()

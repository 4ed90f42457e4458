"""Write the tables of inputs and outputs in the READMEs of the components and of the pipeline.

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


def with_tables(readme: str, component: BaseComponent) -> str:
    """The README's text with its tables written anew.

    Raises:
        ValueError: the marker lines are missing.
    """
    head, start, rest = readme.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README of {component.name}: the lines {START} and {END} are missing")
    return f"{head}{START}\n{tables(component)}\n{END}{tail}"


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


def main() -> None:
    """Write every README's tables anew."""
    for path, component in readmes().items():
        path.write_text(with_tables(path.read_text(encoding="utf-8"), component), encoding="utf-8")


if __name__ == "__main__":
    main()

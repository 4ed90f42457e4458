"""Write docs/api.md, the page of the public names, from their docstrings. `make docs` runs it.

Usage: .venv/bin/python scripts/api_page.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
GROUPS = {
    "Predictions": ("Predictions", "read_predictions", "write_predictions"),
    "Figures": ("measure", "Figures", "Interval", "compare"),
    "Single figures": (
        *("conf_ece", "classwise_ece", "adaptive_ece", "debiased_ece", "smooth_ece"),
        *("brier", "nll_nats", "auroc", "risk_coverage"),
    ),
    "Decisions": ("regime_test", "decide", "fit_temperature", "apply_temperature"),
    "Report and errors": ("write_report", "CalibError"),
}
HEAD = """<!-- Written by `make docs` from the docstrings; change those. -->
# The library's public names

```python
from calib_core import measure
```

Importing `calib_core` loads nothing else; each name is loaded when it is first used, and none needs torch.
Arrays may be numpy arrays, lists, or whatever numpy takes. Wrong input raises a `CalibError` whose message
says what is wrong, where, and what to do.
"""


def page() -> str:
    """The text of docs/api.md.

    Raises:
        ValueError: a public name is in no group, or in two.
    """
    package = griffe.load("calib_core", search_paths=[ROOT], resolve_aliases=True)
    grouped = [name for names in GROUPS.values() for name in names]
    public = [str(name).strip("'\"") for name in package.exports or []]
    if sorted(grouped) != sorted(set(public) - {"__version__"}):
        raise ValueError(f"GROUPS has {sorted(grouped)}, and calib_core's public names are {sorted(public)}")
    parts = [HEAD]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        for name in names:
            parts += _entry(package[name].final_target, "###")
    return "\n".join(parts)


def _entry(entry: Any, heading: str) -> list[str]:
    lines = [f"{heading} `{entry.name}`\n"]
    methods: list[Any] = []
    if entry.is_class:
        methods = [one for name, one in entry.members.items() if one.is_function and not name.startswith("_")]
    else:
        lines.append(f"```python\n{_signature(entry)}\n```\n")
    for section in entry.docstring.parse("google") if entry.docstring else ():
        lines.append(_section(section))
    for method in methods:
        lines += _entry(method, heading + "#")
    return lines


def _signature(function: Any) -> str:
    """The call as it is written in code, one line per parameter where one line is too long."""
    parts: list[str] = []
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and "*" not in parts:
            parts.append("*")
        default = "" if parameter.default is None else f" = {parameter.default}"
        parts.append(f"{parameter.name}: {parameter.annotation}{default}")
    line = f"{function.name}({', '.join(parts)}) -> {function.returns}"
    if len(line) <= 100:
        return line
    return f"{function.name}(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {function.returns}"


def _section(section: Any) -> str:
    kind = section.kind.value
    if kind == "text":
        return f"{section.value}\n"
    if kind == "admonition":
        return f"```pycon\n{section.value.contents}\n```\n"
    if kind == "returns":
        return f"**Returns**: {_line(section.value[0].description)}\n"
    title = {"parameters": "Arguments", "attributes": "Attributes", "raises": "Raises"}[kind]
    rows = [
        f"* `{one.annotation if kind == 'raises' else one.name}`: {_line(one.description)}"
        for one in section.value
    ]
    return f"**{title}**\n\n" + "\n".join(rows) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""Write the parameters into the sources of components and pipelines, from the configs that declare them.

Run as `python -m calib_pipelines.sources`. KFP reads a component's parameters from the literal source of its
function, so that they stand there a second time: type, default and description of each. A component gets all
parameters of its config. A pipeline keeps those that it offers, brought up to date. What else a function
takes, such as artifacts, is written by hand and stays.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path

import calib_components
import calib_pipelines
from calib_components.nodes.job import JobConfig
from calib_components.register_model.registries import RegisterConfig
from calib_core.settings.parameters import Parameter, parameters_of
from calib_core.steps.calibrate import CalibrateConfig
from calib_core.steps.convert import ConvertConfig
from calib_core.steps.evaluate import EvaluateConfig
from calib_core.steps.fresh import FreshConfig
from calib_core.steps.measure import MeasureConfig
from calib_core.steps.prepare import PrepareConfig
from calib_core.steps.promote import PromoteConfig
from calib_core.steps.publish import PublishConfig
from calib_core.steps.shards import ScoreConfig, ShardConfig
from calib_core.training.config import AlignConfig
from calib_pipelines.definitions.offered import OFFERED, declared

WIDTH = 110

COMPONENTS: Mapping[str, type | None] = {
    "calibrate": CalibrateConfig,
    "cft_finetune": JobConfig,
    "convert_predictions": ConvertConfig,
    "data_prep": PrepareConfig,
    "dpo_align": AlignConfig,
    "em_ece_finetune": JobConfig,
    "evaluate": EvaluateConfig,
    "fresh_data": FreshConfig,
    "measure": MeasureConfig,
    "merge_predictions": None,
    "promote": PromoteConfig,
    "publish_champion": PublishConfig,
    "register_model": RegisterConfig,
    "score_shard": ScoreConfig,
    "shard_questions": ShardConfig,
    "temperature_scaling": None,
}
"""The config of each component; None if it has no parameters."""


def with_parameters(source: str, parameters: Mapping[str, Parameter], *, add: bool) -> str:
    """A module's source with the parameters of its one function written into it.

    Args:
        source: the module.
        parameters: what configs declare, by name.
        add: whether the function gets those that it doesn't have yet, in the configs' order; else those that
            it has are brought up to date where they stand.

    Raises:
        ValueError: there is not one function with an `Args:` section.
    """
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    described = [one for one in functions if "\n    Args:\n" in (ast.get_docstring(one, clean=False) or "")]
    if len(described) != 1:
        raise ValueError(f"{len(described)} functions with an Args section, where one is expected")
    (function,) = described
    arguments, doc = function.args.args, function.body[0]
    lines = source.splitlines()
    starts = [one.lineno - 1 for one in arguments]
    ends = [*starts[1:], arguments[-1].end_lineno or 0]
    signature = {one.arg: lines[i:j] for one, i, j in zip(arguments, starts, ends, strict=True)}
    written = {
        name: one
        for name, one in parameters.items()
        if add or (name in signature and one.default is not MISSING)
    }
    names = list(signature)
    if add:
        own = [name for name in names if name not in written]
        optional = {one.arg for one in arguments[len(arguments) - len(function.args.defaults) :]}
        names = [name for name in own if name not in optional]
        names += sorted(written, key=lambda name: written[name].default is not MISSING)
        names += [name for name in own if name in optional]
    signature |= {name: [_signature_line(one)] for name, one in written.items()}
    first, last = doc.lineno - 1, doc.end_lineno or doc.lineno
    return "\n".join(
        [
            *lines[: starts[0]],
            *(line for name in names for line in signature[name]),
            *lines[ends[-1] : first],
            *_with_descriptions(lines[first:last], written, names),
            *lines[last:],
            "",
        ]
    )


def _signature_line(one: Parameter) -> str:
    if one.default is MISSING:
        return f"    {one.name}: {one.type.__name__},"
    if one.default is None:
        return f"    {one.name}: Optional[{one.type.__name__}] = None,  # noqa: UP045 (KFP reads no `| None`)"
    default = f'"{one.default}"' if isinstance(one.default, str) else repr(one.default)
    return f"    {one.name}: {one.type.__name__} = {default},"


def _with_descriptions(lines: list[str], written: Mapping[str, Parameter], names: Sequence[str]) -> list[str]:
    """A docstring's lines, with an entry for each of `names` in its Args section."""
    start = lines.index("    Args:") + 1
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith(" " * 8)), len(lines))
    entries: dict[str, list[str]] = {}
    for line in lines[start:end]:
        if entry := re.match(r" {8}(\w+): ", line):
            entries[entry[1]] = []
        entries[list(entries)[-1]].append(line)
    for name, one in written.items():
        entries[name] = textwrap.wrap(
            f"{name}: {one.description}", WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 12
        )
    return [*lines[:start], *(line for name in names for line in entries.get(name, [])), *lines[end:]]


def sources() -> dict[Path, str]:
    """Every source that has parameters of configs, as it should be."""
    found: dict[Path, str] = {}
    components = Path(calib_components.__file__).parent
    for name, config_class in COMPONENTS.items():
        path = components / name / "component.py"
        text = path.read_text(encoding="utf-8")
        if (
            config_class and "@dsl.component" in text
        ):  # a variant of another component has no source of its own
            parameters = {one.name: one for one in parameters_of(config_class)}
            found[path] = with_parameters(text, parameters, add=True)
    definitions = Path(calib_pipelines.__file__).parent / "definitions"
    for name in OFFERED:
        path = definitions / f"{name.replace('-', '_')}.py"
        found[path] = with_parameters(path.read_text(encoding="utf-8"), declared(name), add=False)
    return found


def main() -> None:
    """Rewrite every source."""
    for path, text in sources().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Check a compiled package against the rules of the backend that is to run it, before anything is sent."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calib_core.errors import ConfigError
from calib_core.runtime.progress import say
from calib_pipelines.packages import branches, fields, importers, placeholders, retries, sizes
from calib_pipelines.packages.rules import BACKENDS, Asked, Finding, Rule
from calib_pipelines.packages.spec import Graph, read_graph

RULES: Mapping[str, tuple[Rule, ...]] = {
    "kubeflow": (
        *fields.RULES,
        *importers.RULES,
        *branches.RULES,
        *retries.RULES,
        *placeholders.RULES,
        *sizes.RULES,
    ),
    "vertex": fields.VERTEX_RULES,
}
"""By platform."""
SHOWN = 5
"""How many places of one rule a message names; all are counted."""


@dataclasses.dataclass(frozen=True)
class Broken:
    """A rule that a package breaks, with all places."""

    rule: Rule
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        lines = [f"{found.place}: {found.what}" for found in self.findings[:SHOWN]]
        if (more := len(self.findings) - SHOWN) > 0:
            lines.append(f"and {more} more")
        lines += [f"remedy: {self.rule.remedy}", f"source: {self.rule.source}"]
        return f"{self.rule.id}: {self.rule.text}" + "".join(f"\n    {line}" for line in lines)


def checked_versions(version: str) -> tuple[str, ...]:
    """Releases of Kubeflow Pipelines that a package is checked for.

    Args:
        version: `X.Y`, or longer as a server says it, such as `2.16.1`; empty for all of `BACKENDS`.

    Raises:
        ConfigError: it is older than all of them, or no version.
    """
    if not version:
        return BACKENDS
    found = re.match(r"v?(\d{1,6})\.(\d{1,6})(?![\d])", version)
    if found is None:
        raise ConfigError(f"backend version {version!r}: give it as X.Y, such as {BACKENDS[-1]}")
    asked = (int(found[1]), int(found[2]))
    known = [tuple(map(int, one.split("."))) for one in BACKENDS]
    if asked < known[0]:
        raise ConfigError(
            f"Kubeflow Pipelines {version} is too old: {BACKENDS[0]} or newer is needed, which Kubeflow has "
            "from 1.11 on; upgrade it"
        )
    return (BACKENDS[known.index(asked)],) if asked in known else BACKENDS[-1:]


def broken(
    graph: Graph, target: str, *, version: str = "", values: Mapping[str, Any] | None = None
) -> list[Broken]:
    """The rules that a package breaks.

    Args:
        graph: the package.
        target: `kubeflow` or `vertex`.
        version: release of Kubeflow Pipelines, see `checked_versions`.
        values: parameters that a run is given; None while they aren't known.
    """
    asked = Asked(graph=graph, versions=checked_versions(version), values=values)
    found = []
    for rule in RULES[target]:
        places = tuple(_concerned(rule, asked))
        if places:
            found.append(Broken(rule, places))
    return found


def _concerned(rule: Rule, asked: Asked) -> Iterator[Finding]:
    for found in rule.find(asked) if set(rule.versions) & set(asked.versions) else ():
        wrong_for = [one for one in asked.versions if one in rule.versions and one in found.versions]
        if wrong_for:
            only = "" if len(wrong_for) == len(BACKENDS) or len(asked.versions) == 1 else _span(wrong_for)
            yield dataclasses.replace(found, what=found.what + only)


def _span(versions: Sequence[str]) -> str:
    names = versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
    return f" (KFP {names})"


def check_package(
    path: Path, target: str, *, version: str = "", values: Mapping[str, Any] | None = None
) -> list[str]:
    """Refuse a package that its backend can't run.

    Args:
        path: the package.
        target: `kubeflow` or `vertex`.
        version: release of Kubeflow Pipelines; empty if it isn't known, for all of `BACKENDS`.
        values: parameters that a run is given; None while they aren't known.

    Returns:
        What the package's user should know all the same.

    Raises:
        ConfigError: it breaks rules; the message has each with the places, the remedy and the source.
    """
    found = broken(read_graph(path), target, version=version, values=values)
    refused = [one for one in found if one.rule.refuses]
    if refused:
        where = "Vertex AI Pipelines"
        if target == "kubeflow":
            versions = checked_versions(version)
            where = "Kubeflow Pipelines " + " to ".join(dict.fromkeys((versions[0], versions[-1])))
        raise ConfigError(f"{path} can't run on {where}:\n" + "\n".join(map(str, refused)))
    return [str(one) for one in found]


def add_backend_version(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says which release of Kubeflow Pipelines a package is checked for."""
    parser.add_argument(
        "--backend-version",
        default="",
        metavar="X.Y",
        help="release of Kubeflow Pipelines that is to run it (default: what its server says, else "
        f"{BACKENDS[0]} to {BACKENDS[-1]})",
    )


def tell(notes: Sequence[str]) -> None:
    """Say what a package's user should mind."""
    for note in notes:
        say(f"mind: {note}")

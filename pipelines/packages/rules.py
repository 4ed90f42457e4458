"""What a rule about packages is, and which releases of Kubeflow Pipelines the rules were read for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from calib_pipelines.packages.spec import Graph

KFP, KFP_OLD = "kubeflow/pipelines 2.17.0 (4a3592c)", "kubeflow/pipelines 2.16.1 (67a73cf)"
KFP_OLDER = "kubeflow/pipelines 2.15.0 (8fe8d7b)"
ARGO = "argoproj/argo-workflows v4.0.5"
"""Where sources were read. What the newest release does differently was read at the older tags too."""
BACKENDS = ("2.14", "2.15", "2.16", "2.17")
"""Releases of Kubeflow Pipelines that packages are checked for, the oldest first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What a package is checked for.

    Attributes:
        graph: The package.
        versions: Releases of Kubeflow Pipelines, of `BACKENDS`.
        values: Parameters that a run is given; None while they aren't known.
    """

    graph: Graph
    versions: tuple[str, ...]
    values: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A place in a package that breaks a rule.

    Attributes:
        place: Where, as a path of keys.
        what: What stands there.
        versions: Releases that it is wrong for, where those are fewer than the rule's.
    """

    place: str
    what: str
    versions: tuple[str, ...] = BACKENDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule that a backend has.

    Attributes:
        id: Its name here.
        text: What the backend does, in a sentence.
        remedy: What to do instead.
        source: Where it was read: repository, tag, files and lines.
        find: Finds what breaks it.
        versions: Releases that have it.
        refuses: Whether a package that breaks it is refused; where not, its user is told.
    """

    id: str
    text: str
    remedy: str
    source: str
    find: Callable[[Asked], Iterator[Finding]]
    versions: tuple[str, ...] = BACKENDS
    refuses: bool = True


def before(version: str) -> tuple[str, ...]:
    """Releases older than `version`."""
    return BACKENDS[: BACKENDS.index(version)]


def since(version: str) -> tuple[str, ...]:
    """`version` and newer releases."""
    return BACKENDS[BACKENDS.index(version) :]


def lines(*places: str, at: str = KFP) -> str:
    """A rule's source: files and lines of the backend at a tag."""
    return f"{at} {', '.join(f'backend/src/{place}' for place in places)}"

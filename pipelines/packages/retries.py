"""Rules about retries: how Argo counts what KFP hands on of a task's retry policy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from calib_pipelines.packages.rules import ARGO, Asked, Finding, Rule, lines
from calib_pipelines.packages.spec import ROOT, Dag, Node, Task

SHORTEST_S = 600
"""Time that a retry policy must leave for each attempt of a task that has no timeout of its own."""

_POLICY = lines("v2/compiler/argocompiler/container.go:614-685")
_TEXT = (
    "backoff_max_duration counts from the first attempt's start: once it is over no attempt is made, and one "
    "that still runs is killed"
)
_DEADLINE = f"{_POLICY}; {ARGO} workflow/controller/operator.go:1026-1095"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retries:
    """How a task is tried again.

    Attributes:
        count: Most attempts after the first.
        wait_s: Pause before the second attempt.
        factor: What each further pause is longer by.
        limit_s: Time from the first attempt's start at which all ends.
        timeout_s: Longest time of an attempt; 0 if there is no limit.
    """

    count: int
    wait_s: float
    factor: float
    limit_s: float
    timeout_s: float

    def needed_s(self, attempt_s: float) -> float:
        """Time that all attempts take at most, where each takes `attempt_s`."""
        waits = sum(self.wait_s * max(self.factor, 1.0) ** n for n in range(self.count))
        return (self.count + 1) * attempt_s + waits


def retries(task: Task) -> Retries | None:
    """A container's retries, its own or those of the DAG around it; None if it has none."""
    policy = _policy(task)
    if policy is None or not policy.get("maxRetryCount"):
        return None
    return Retries(
        count=int(policy["maxRetryCount"]),
        wait_s=_seconds(policy.get("backoffDuration", "0s")),
        factor=float(policy.get("backoffFactor", 0)),
        limit_s=_seconds(policy.get("backoffMaxDuration", "0s")),
        timeout_s=float(task.dag.graph.kubernetes_config(task).get("activeDeadlineSeconds", 0)),
    )


def _policy(task: Task) -> Node | None:
    """As the backend's compiler hands it down (backend/src/v2/compiler/visitor.go:163-165)."""
    if "retryPolicy" in task.spec:
        found: Node = task.spec["retryPolicy"]
        return found
    return _inherited(task.dag)


def _inherited(dag: Dag) -> Node | None:
    if dag.name == ROOT or not dag.users:
        return None
    return _policy(dag.users[0])


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(duration))
    return float(found[1]) if found else 0.0


def _retried(asked: Asked) -> Iterator[tuple[Task, Retries]]:
    for task in asked.graph.tasks():
        if task.container is not None and (found := retries(task)) is not None:
            yield task, found


def _too_short(asked: Asked) -> Iterator[Finding]:
    for task, policy in _retried(asked):
        attempt_s = policy.timeout_s or SHORTEST_S
        needed_s = policy.needed_s(attempt_s)
        if policy.limit_s < needed_s:
            yield Finding(
                place=f"{task.place}.retryPolicy",
                what=f"backoffMaxDuration is {policy.limit_s:g}s, but {policy.count + 1} attempts of "
                f"{attempt_s:g}s with their pauses take {needed_s:g}s",
            )


def _limited(asked: Asked) -> Iterator[Finding]:
    for task, policy in _retried(asked):
        if not policy.timeout_s and policy.needed_s(SHORTEST_S) <= policy.limit_s < policy.needed_s(86400):
            yield Finding(
                place=f"{task.place}.retryPolicy",
                what=f"all attempts together have {policy.limit_s:g}s",
            )


def _broken_factor(asked: Asked) -> Iterator[Finding]:
    for task, policy in _retried(asked):
        if policy.factor != int(policy.factor):
            yield Finding(place=f"{task.place}.retryPolicy", what=f"backoffFactor is {policy.factor:g}")


RULES = (
    Rule(
        id="retry-time",
        text=_TEXT,
        remedy="give set_retry a backoff_max_duration that has room for all attempts and pauses, such as 30d",
        source=_DEADLINE,
        find=_too_short,
    ),
    Rule(
        id="retry-limit",
        text=_TEXT,
        remedy="where attempts can take longer, give set_retry a larger backoff_max_duration",
        source=_DEADLINE,
        find=_limited,
        refuses=False,
    ),
    Rule(
        id="retry-factor",
        text="backoff_factor must be a whole number, or the first retry ends the run with an error",
        remedy="give set_retry a whole backoff_factor",
        source=f"{_POLICY}; {ARGO} util/intstr/parametrizable.go:13-30, "
        "workflow/controller/operator.go:1055-1058",
        find=_broken_factor,
    ),
)

"""An installation of Kubeflow Pipelines, and how a run on it went."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import selectors
from collections.abc import Mapping, Sequence
from typing import Any

from strict_backend.launcher import FAILURE, LOST, Call, Program, Spec
from strict_backend.run import SUCCEEDED, Run
from strict_backend.store import Execution, Store


@dataclasses.dataclass
class Result:
    """How a run went.

    Attributes:
        phase: `Succeeded` or `Failed`.
        phases: Phases of all tasks by their path of keys, such as `exit-handler-1/evaluate`.
        errors: What drivers, importers and launchers said, by path.
        calls: All programs that were started, in order.
        states: The metadata store's states by path.
    """

    phase: str = SUCCEEDED
    phases: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    calls: list[Call] = dataclasses.field(default_factory=list)
    executions: dict[str, Execution] = dataclasses.field(default_factory=dict)

    @property
    def states(self) -> dict[str, str]:
        return {path: execution.state for path, execution in self.executions.items()}

    @property
    def ran(self) -> list[str]:
        """Keys of the tasks whose programs were started, once for each attempt."""
        return [call.task for call in self.calls]

    def outputs(self, key: str) -> dict[str, Any]:
        """Output parameters of the task of that key."""
        (found,) = [one for path, one in self.executions.items() if path.rpartition("/")[2] == key]
        return found.outputs


class Backend:
    """An installation: its metadata store, its cache, and what runs there.

    Args:
        programs: what components do, by their name without the number that tells tasks apart.
        version: release of Kubeflow Pipelines.
        seed: of the times that pods take to start.
        retried: what is tried again, of `FAILURE` and `LOST`; what a stock installation of the release tries
            again (manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml:55-59)
            where left out.
        root: the pipeline root; a folder, where programs really write.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        *,
        version: tuple[int, int] = (2, 17),
        seed: int = 0,
        retried: Sequence[str] = (),
        root: str = "minio://mlpipeline/v2/artifacts",
    ) -> None:
        self.programs = dict(programs)
        self.version, self.root = version, root
        self.store = Store(propagates=version >= (2, 17))
        self.cache: dict[tuple[str, str], Execution] = {}
        self.retried = tuple(retried) or ((FAILURE,) if version < (2, 17) else (LOST,))
        self.random = random.Random(seed)  # noqa: S311 - an order, no secret
        self.runs = 0

    def run(self, documents: Sequence[Spec], parameters: Mapping[str, Any] | None = None) -> Result:
        """Run a package with the parameters given, defaults for the others."""
        self.runs += 1
        run = Run(self, documents, Result())
        with asyncio.Runner(loop_factory=_SimulatedTime) as runner:
            runner.run(run.start(dict(parameters or {})))
        return run.result


class _SimulatedTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to whatever happens next."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._now


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: _SimulatedTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop._now += timeout or 0.0
        return super().select(0)

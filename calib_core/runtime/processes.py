"""What the processes of one run do together: who does which part, and how all come to know the same.

A run is one process, or several that `accelerate launch` or `torchrun` has started with the same command (on
one machine or on many). All of them must call the functions below in the same order. With one process they
cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: machines don't load a large model equally fast."""


def launched() -> bool:
    """Whether this is one of several processes that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def speaks() -> bool:
    """Whether this process reports to people: the first one does, the others keep quiet."""
    return not launched() or os.environ.get("RANK") == "0"


def join() -> None:
    """Meet the other processes, each on a device of its own; nothing if there are no others."""
    if launched():
        from accelerate import PartialState  # noqa: PLC0415 (torch: what talks only does without)

        PartialState(cpu=on_cpus(), timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes after work that succeeded; nothing if there are no others.

    Without it, the group is torn down by the interpreter's exit, in which its threads may crash: a run whose
    results are whole would be reported as failed. After an error nobody may wait for the others: then the
    launcher ends them.
    """
    group = _group()
    if group:
        group.destroy_process_group()


def on_cpus() -> bool:
    """Whether several processes compute on CPUs; accelerate takes them for unrelated ones unless told so."""
    import torch  # noqa: PLC0415

    return launched() and not torch.cuda.is_available()


def count() -> int:
    """Number of processes that have met."""
    group = _group()
    return group.get_world_size() if group else 1


def index() -> int:
    """Number of this process among them, from 0."""
    group = _group()
    return group.get_rank() if group else 0


def even_share(items: Sequence[T]) -> list[T]:
    """This process's part of `items`: parts of equal length, for which the first items may come twice.

    Equal, because forward passes of a model that is spread over the processes need all of them.
    """
    total = -(-len(items) // count()) * count()
    return [items[i % len(items)] for i in range(index(), total, count())]


def gather(value: T) -> list[T]:
    """The values of all processes, in their order."""
    group = _group()
    if not group:
        return [value]
    values: list[Any] = [None] * count()
    group.all_gather_object(values, value)
    return values


def largest(*values: int) -> tuple[int, ...]:
    """The largest of what the processes have, number by number; quicker than `gather`."""
    group = _group()
    if not group:
        return values
    import torch  # noqa: PLC0415
    from accelerate import PartialState  # noqa: PLC0415

    numbers = torch.tensor(values, device=PartialState().device)
    group.all_reduce(numbers, op=group.ReduceOp.MAX)
    return tuple(numbers.tolist())


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` gives in the first process, in all; the others wait for it, and raise what it raises."""
    group = _group()
    if not group:
        return compute()
    answer: list[Any] = [None, None]
    if index() == 0:
        try:
            answer[0] = compute()
        except Exception as error:
            answer[1] = error
    group.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result


def _group() -> Any:
    import torch.distributed as group  # noqa: PLC0415

    return group if group.is_available() and group.is_initialized() else None

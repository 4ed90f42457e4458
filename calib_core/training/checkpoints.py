"""Training checkpoints: one is whole at each moment, safetensors and JSON only, found by content key."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from calib_core.errors import CalibError, DataFormatError, StaleVersionError
from calib_core.models.memory import as_placed, whole_tensor
from calib_core.runtime import processes
from calib_core.runtime.progress import say
from calib_core.storage.files import read_json, write_json
from calib_core.storage.generations import Generations
from calib_core.storage.uris import is_remote

_TENSORS, _STATE = "tensors.safetensors", "state.json"

KEPT_S = 30 * 24 * 3600.0
"""How long a checkpoint is kept that no run goes on from."""

SAVES = 3
"""How often to try again where another attempt of the same run removes what this one is at."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped.

    Attributes:
        adapter: trainable tensors by name, as they are now.
        best_adapter: trainable tensors of the best evaluation so far; empty before the first.
        optimizer: Adam's tensors, named `<parameter>.<state>`.
        random_states: states of the random generators that dropout draws from, uint8, named
            `<process>/<device>`.
        state: everything else, JSON-able (step, schedule, history, targets).
    """

    adapter: dict[str, Tensor]
    best_adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random_states: dict[str, Tensor]
    state: dict[str, Any]


_PARTS = ("adapter", "best_adapter", "optimizer", "random_states")


def save_checkpoint(place: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint beside those that are there; it counts once it is whole, and the one before stays.

    Several attempts of one run may write to one place: each checkpoint is of one attempt alone, and any of
    them can be gone on from.

    Args:
        place: folder on this machine, or a bucket's URI. A folder also gets `state.json`, for people: where
            the run stands.
        checkpoint: what to write.

    Raises:
        CalibError: the disk is full, or the bucket can't be written to.
    """
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous().clone()
        for part in _PARTS
        for name, tensor in getattr(checkpoint, part).items()
    }
    for attempt in range(SAVES):
        try:
            with Generations(place).write() as folder:
                save_file(tensors, folder / _TENSORS)
                write_json(folder / _STATE, checkpoint.state)
            if not is_remote(place):
                write_json(Path(place) / _STATE, checkpoint.state)
            return
        except StaleVersionError:  # in a bucket: another attempt has just written one as good
            return
        except (FileNotFoundError, SafetensorError):  # another attempt has ended, and removed its checkpoints
            if attempt == SAVES - 1:
                raise


def load_checkpoint(place: str | Path) -> Checkpoint | None:
    """Read the newest checkpoint of a place that is whole; None if there is none.

    A damaged one is named on standard error, and the one before it is taken; where none is whole, that is
    said too, and the run starts over.
    """
    for attempt in range(SAVES):
        folder = None
        try:
            folder = Generations(place).read()
            return None if folder is None else _read(folder)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, DataFormatError) as error:
            if folder is not None and not folder.exists() and attempt < SAVES - 1:
                continue  # it made room for a newer one while it was read
            say(f"{place}: no whole checkpoint ({error}); training starts over")
            return None
    return None


def _read(folder: Path) -> Checkpoint:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for key, tensor in load_file(folder / _TENSORS).items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    return Checkpoint(**parts, state=dict(read_json(folder / _STATE)))


def shared_checkpoint(place: str | Path) -> Checkpoint | None:
    """The checkpoint that the first process finds, in all: machines may share no volume."""
    found: list[Checkpoint | None] = [None]

    def read() -> dict[str, Any] | None:
        found[0] = load_checkpoint(place)
        if found[0] is None:
            return None
        names = {part: list(getattr(found[0], part)) for part in _PARTS}
        return {"names": names, "state": found[0].state}

    def tensor_of(part: str, name: str) -> Tensor:
        tensor: Tensor = getattr(found[0], part)[name]
        return tensor

    plain = processes.from_first(read)
    if plain is None or processes.count() == 1:
        return found[0]
    # One tensor at a time: all of them at once may be more than an accelerator has room for.
    parts = {
        part: {name: processes.from_first(partial(tensor_of, part, name)) for name in names}
        for part, names in plain["names"].items()
    }
    return Checkpoint(**parts, state=plain["state"])


def drop_checkpoint(place: str | Path) -> None:
    """Remove the checkpoints of a run that has ended; where that can't be done, say so."""
    for _ in range(SAVES):  # another attempt may be writing there
        try:
            Generations(place).drop()
            return
        except (OSError, CalibError) as error:
            left = error
    say(f"{place}: the checkpoints of this run could not be removed: {left}")


def sweep_checkpoints(root: Path) -> None:
    """Remove checkpoints that no run has gone on from for a month.

    Args:
        root: folder that holds a folder for each run.
    """
    if not root.is_dir():
        return
    for folder in root.iterdir():
        state = folder / _STATE
        if state.is_file() and time.time() - state.stat().st_mtime > KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Adam's state as named tensors; `names` are the parameters' names in the optimizer's order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}.{key}": whole_tensor(torch.as_tensor(value))
        for index, values in state.items()
        for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put named tensors back into an optimizer that was built over the same parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, field = key.rpartition(".")
        index = index_of[name]
        # Averages lie as their parameter does; the number of steps is one number, and stays whole.
        placed = as_placed(tensor, parameters[index]) if tensor.dim() else tensor
        state.setdefault(index, {})[field] = placed
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def own_random_states() -> dict[str, Tensor]:
    """States of this process's generators, CPU and the current accelerator, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_own_random_states(states: dict[str, Tensor]) -> None:
    """Put this process's generators back; an accelerator's is left out on a machine without one."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def random_states() -> dict[str, Tensor]:
    """`own_random_states` of every process of the run, named `<process>/<device>`."""
    return {
        f"{process}/{device}": state
        for process, own in enumerate(processes.gather(own_random_states()))
        for device, state in own.items()
    }


def restore_random_states(states: dict[str, Tensor]) -> None:
    """Put this process's generators back; one that the run did not have goes on with its own."""
    own = f"{processes.index()}/"
    restore_own_random_states(
        {name.removeprefix(own): state for name, state in states.items() if name.startswith(own)}
    )

"""Training checkpoints: whole or not at all, safetensors and JSON only, found by their content key."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from calib_core.errors import DataFormatError
from calib_core.models.memory import as_placed, whole_tensor
from calib_core.runtime import processes
from calib_core.storage.files import read_json, whole_folder, write_json

_TENSORS, _STATE = "tensors.safetensors", "state.json"


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


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the one that is there; an interruption leaves the old one."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous().clone()
        for part in _PARTS
        for name, tensor in getattr(checkpoint, part).items()
    }
    with whole_folder(folder) as temporary:
        save_file(tensors, temporary / _TENSORS)
        write_json(temporary / _STATE, checkpoint.state)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the checkpoint of a folder; None where there is none.

    Raises:
        DataFormatError: the folder is there but isn't a whole checkpoint.
    """
    if not folder.exists():
        return None
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    try:
        for key, tensor in load_file(folder / _TENSORS).items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        return Checkpoint(**parts, state=dict(read_json(folder / _STATE)))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, DataFormatError) as error:
        raise DataFormatError(
            f"{folder}: not a whole checkpoint ({error}); delete the folder to start anew"
        ) from error


def shared_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint that the first process finds in its folder, in all: machines may share no volume.

    Raises:
        DataFormatError: as `load_checkpoint`, in all processes.
    """
    found: list[Checkpoint | None] = [None]

    def read() -> dict[str, Any] | None:
        found[0] = load_checkpoint(folder)
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


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that has served."""
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

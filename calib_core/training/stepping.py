"""Forward, backward and optimiser steps of one model, in one process or spread over several.

A batch is shared out among the processes, and its loss is the mean over the whole batch, whatever the shares
and however many passes its questions take.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Tensor
from torch.nn import Module
from transformers import get_cosine_schedule_with_warmup

from calib_core.errors import CalibError
from calib_core.models.memory import as_placed, spread, whole_tensors
from calib_core.runtime import interrupts, processes
from calib_core.training.checkpoints import optimizer_tensors, restore_optimizer
from calib_core.training.config import FinetuneConfig
from calib_core.training.lora import trainable_parameters

MeanLoss = Callable[[Module, list[int]], Tensor]
"""The mean loss of a model over some rows: scalar, float32."""


class Stepper:
    """Owns the model while it is trained, the optimiser, and the schedule of its learning rate.

    Args:
        config: parameters of the run.
        model: with trainable parameters (`attach_lora`).
        steps: optimiser steps of the whole run, which the schedule is spread over.
    """

    def __init__(self, config: FinetuneConfig, model: Any, *, steps: int) -> None:
        self._config, self._adapted = config, model
        self._accelerator = Accelerator(cpu=processes.on_cpus(), kwargs_handlers=[_exchange(model)])
        spreading = config.placement == "fsdp"
        if spreading:
            spread(model)
        parameters = trainable_parameters(model)
        self._names = list(parameters)
        self._optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0)
        self._schedule = get_cosine_schedule_with_warmup(
            self._optimizer, round(config.warmup_fraction * steps), steps
        )
        self._model = model if spreading else self._accelerator.prepare(model)
        set_seed(config.seed, device_specific=True)  # processes must not drop out the same units

    def train_batch(
        self,
        passing: Sequence[list[int]],
        loss_of: MeanLoss,
        *,
        ends_step: bool,
        named: Callable[[list[int]], str],
    ) -> float:
        """A batch forward and backward, and an optimiser step if it ends one.

        Args:
            passing: the batch's rows, in the parts that go through the model at once.
            loss_of: the loss.
            ends_step: whether this is the last batch of an optimiser step.
            named: what a message calls some of the rows.

        Returns:
            The mean loss over the batch.

        Raises:
            CalibError: the loss is not finite.
            Stopped: the process was told to end; gradients of a part of the batch are left.
        """
        n_rows = sum(map(len, passing))
        self._model.train()
        value = 0.0
        for part in passing:
            interrupts.check()
            with self._adding_up(ends_step and part is passing[-1]):
                loss = self._share_of_loss(part, loss_of) * (len(part) / n_rows)
                value += float(self._accelerator.reduce(loss.detach(), reduction="sum"))
                if not math.isfinite(value):
                    raise CalibError(
                        f"the loss is {value} at {named(part)}; use a lower learning_rate, or dtype float32, "
                        "and look at these questions"
                    )
                # Gradients are averaged over the processes, where the shares are meant to be added up.
                (loss * (processes.count() / self._config.gradient_accumulation)).backward()
        if ends_step:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()
        return value

    def _adding_up(self, steps: bool) -> contextlib.AbstractContextManager[None]:
        """Where no step follows, gradients are added up in each process, and exchanged by a later pass."""
        if self._config.placement == "fsdp":
            self._model.set_requires_gradient_sync(steps)
            return contextlib.nullcontext()
        nothing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        return nothing if steps else self._accelerator.no_sync(self._model)

    def _share_of_loss(self, rows: list[int], loss_of: MeanLoss) -> Tensor:
        """What this process's rows add to the mean loss over all of `rows`: scalar, float32."""
        own = rows[processes.index() :: processes.count()]
        weight = len(own) / len(rows)
        # Every process must go forward and backward, if only with weight 0.
        return weight * loss_of(self._model, own or rows[:1])

    def adapter(self) -> dict[str, Tensor]:
        """A copy of the trainable parameters by name, whole and in the CPU's memory."""
        tensors = whole_tensors(trainable_parameters(self._adapted))
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    def put_adapter(self, tensors: Mapping[str, Tensor]) -> None:
        """Put such a copy back into the model."""
        parameters = trainable_parameters(self._adapted)
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameters[name].copy_(as_placed(tensor, parameters[name]))

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state, for a checkpoint."""
        return optimizer_tensors(self._optimizer, self._names)

    def schedule_state(self) -> dict[str, Any]:
        """The schedule's state, for a checkpoint."""
        return {key: value for key, value in self._schedule.state_dict().items() if key != "lr_lambdas"}

    def restore(
        self, adapter: Mapping[str, Tensor], optimizer: dict[str, Tensor], schedule: Mapping[str, Any]
    ) -> None:
        """Go on from a checkpoint: what `adapter`, `optimizer_tensors` and `schedule_state` gave."""
        self.put_adapter(adapter)
        restore_optimizer(self._optimizer, self._names, optimizer)
        self._schedule.load_state_dict({**schedule, "lr_lambdas": [None]})
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate


def _exchange(model: Any) -> DistributedDataParallelKwargs:
    """How processes exchange gradients: where a batch may miss a parameter (an expert), none waits for it."""
    text = model.config.get_text_config()
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return DistributedDataParallelKwargs(
        find_unused_parameters=any(getattr(text, name, None) for name in experts)
    )

"""Where a run of training stands, as its checkpoint says it beside the tensors, and how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from calib_core.decisions.target import ConfidenceTargets
from calib_core.training.balance import Weights
from calib_core.training.batches import Objective
from calib_core.training.stopping import Evaluation


@dataclass(kw_only=True)
class RunState:
    """A run between two batches.

    Attributes:
        batches_done: batches trained on, over all epochs.
        steps: optimiser steps made.
        evaluated_at: `batches_done` at the last evaluation; 0 before the first.
        objective: the loss that is trained on.
        history: all evaluations of the calibration fold.
        targets: RCFT's target confidences; None before the first E-step.
        loss_sum: of the batches since the last evaluation.
        loss_count: how many they are.
        stopped: why no more is trained; "" while it goes on.
        weights: of the losses.
    """

    batches_done: int = 0
    steps: int = 0
    evaluated_at: int = 0
    objective: Objective = "cft"
    history: list[Evaluation] = field(default_factory=list)
    targets: ConfidenceTargets | None = None
    loss_sum: float = 0.0
    loss_count: int = 0
    stopped: str = ""
    weights: Weights
    _PLAIN: ClassVar = (
        *("batches_done", "steps", "evaluated_at", "objective", "loss_sum", "loss_count", "stopped"),
    )

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            **{key: getattr(self, key) for key in self._PLAIN},
            "history": [asdict(evaluation) for evaluation in self.history],
            "targets": self.targets.to_dict() if self.targets else None,
            "weights": asdict(self.weights),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> RunState:
        """Read JSON values."""
        history = [Evaluation(**evaluation) for evaluation in value["history"]]
        targets = ConfidenceTargets.from_dict(value["targets"]) if value["targets"] else None
        plain = {key: value[key] for key in cls._PLAIN}
        return cls(**plain, history=history, targets=targets, weights=Weights(**value["weights"]))


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run did: every evaluation, the one whose adapter the model now holds, and how the run ended."""

    history: tuple[Evaluation, ...]
    chosen: int
    steps: int
    stopped: str

    @property
    def temperature(self) -> float:
        """What the kept model's logits are to be divided by; 1 if no other number lowers its NLL."""
        return self.history[self.chosen].temperature

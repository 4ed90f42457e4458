"""Runs of training, and what each process saw of them: `torchrun tests/in_processes.py MODEL OUT CASES`.

Imported by tests for the runs in one process, and started by them with two.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from test_training import CONFIG, MachineError, Run, interrupt_at

from calib_core.models.loading import adapter_digest
from calib_core.runtime import interrupts, processes
from calib_core.runtime.interrupts import Stopped

# 13 questions in batches of 3: shares of 2 and 1, and one batch of a single question. Three batches make a
# step, and the last step of an epoch has two.
SMALL = replace(
    CONFIG, batch_size=3, gradient_accumulation=3, lora_dropout=0.0, evaluations_per_epoch=2, epochs=3
)


def trained_in(model: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Train as a case says, and tell every batch's loss, the evaluations and what became of the adapter."""
    config = replace(SMALL, **case.get("changes", {}))
    run = Run(model, config, case["objective"], Path(case["work"]))
    if "interrupt_at" in case:
        run.before_heldout = interrupt_at(case["interrupt_at"])
    losses: list[float] = []
    step = run.training._train_batch

    def noted(position: int, rows: list[int]) -> float:
        losses.append(step(position, rows))
        return losses[-1]

    run.training._train_batch = noted  # type: ignore[method-assign]
    try:
        with told_to_end(case.get("stop_at", 0) if processes.index() else 0):
            result = run.run()
    except MachineError:
        return {"losses": losses}
    except Stopped as stop:
        return {"losses": losses, "stopped": str(stop)}
    targets = run.training._state.targets
    return {
        "losses": losses,
        "history": [asdict(evaluation) for evaluation in result.history],
        "chosen": result.chosen,
        "stopped": result.stopped,
        "targets": targets.to_dict() if targets else None,
        "adapter": {name: tensor.tolist() for name, tensor in run.training._stepper.adapter().items()},
        "digest": adapter_digest(run.loaded.model),
        "tables": [table.logits.tolist() for table in run.tables],
    }


@contextlib.contextmanager
def told_to_end(call: int) -> Iterator[None]:
    """SIGTERM to this process, and to no other, just before a check of this number, counted from 1."""
    calls, check = itertools.count(1), interrupts.check

    def counted(note: bool = False) -> bool:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return check(note)

    interrupts.check = counted
    try:
        yield
    finally:
        interrupts.check = check


def main(model: str, out: str, cases: str) -> None:
    torch.set_num_threads(1)
    processes.join()
    seen = {name: trained_in(Path(model), case) for name, case in json.loads(cases).items()}
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

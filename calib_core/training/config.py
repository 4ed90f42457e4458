"""Parameters of training: calibration-aware fine-tuning, and the alignment by DPO that precedes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calib_core.errors import ConfigError
from calib_core.settings.groups import Bins, Loading, Lora, Optimizer, Prompt, Regime, Scoring, Seed
from calib_core.settings.parameters import parameter

CHECKPOINTS_VARIABLE, IN_OUTPUTS_BUCKET = "CALIB_CHECKPOINTS", "output"
"""Names a folder or bucket prefix for checkpoints; with this value they go where runs put their outputs."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Optimizer, Lora, Prompt, Loading, Scoring, Regime, Bins, Seed):
    """Parameters of calibration-aware fine-tuning (Xiao et al. 2025, sections 4 and 5)."""

    GROUP = "fine-tuning"

    aim: Literal["calibration", "accuracy"] = parameter(
        "calibration",
        "`calibration` (stop when the calibration fold no longer improves) or `accuracy` (train as long as "
        "held-out accuracy rises).",
    )
    epochs: int = parameter(
        5,
        "Maximum number of epochs; training stops earlier if the calibration fold no longer improves.",
        at_least=1,
    )
    batch_size: int = parameter(
        8, "Questions whose mean loss gives one gradient, over all processes.", at_least=1
    )
    pass_tokens: int = parameter(
        2048,
        "Padded tokens in one forward and backward pass of a process; a longer batch is computed in several, "
        "which changes its memory and not its gradient.",
        at_least=1,
    )
    gradient_accumulation: int = parameter(
        1, "Batches whose gradients are added up into one optimiser step.", at_least=1
    )
    evaluations_per_epoch: int = parameter(
        2, "How often the calibration fold is scored to choose where to stop.", at_least=1
    )
    patience: int = parameter(2, "Evaluations without improvement after which training stops.", at_least=1)
    option_orders: Literal["cyclic", "given"] = parameter(
        "cyclic",
        "Order of a question's options while training: `cyclic` (shifted by one place every epoch, so that "
        "the answer comes under every letter) or `given`.",
    )
    lambda_ece: float = parameter(
        1.0, "Weight of the EM-ECE loss in RCFT; the initial one if `adapt_weights` is on.", at_least=0
    )
    label_smoothing: float = parameter(
        0.0,
        "Share of the answer's probability that CFT spreads over the options; the initial one if "
        "`adapt_weights` is on.",
        at_least=0,
        below=1,
    )
    adapt_weights: bool = parameter(
        True,
        "Raise and lower these two while training, as the calibration fold shows too much or too little "
        "confidence.",
    )
    e_steps_per_epoch: int = parameter(
        4, "How often RCFT estimates its target confidences again.", at_least=1
    )
    estimation_fold: Literal["holdout", "fit", "initial"] = parameter(
        "holdout",
        "Where they are estimated: `holdout` (the calibration fold), `fit`, or `initial` (fit, once, before "
        "training).",
    )
    remainder: Literal["tempered", "tanh"] = parameter(
        "tempered",
        "What RCFT asks of the options below the top one: `tempered` (the model's own distribution at the "
        "temperature that gives the top option its target) or `tanh` (the paper's map).",
    )
    placement: Literal["whole", "fsdp", "qlora"] = parameter(
        "whole",
        "How the base model lies in memory while it is trained: `whole` (a copy in each process), `fsdp` "
        "(spread over the processes) or `qlora` (a copy in each process, in 4 bits).",
    )
    processes: int = parameter(1, "Training processes on each machine, one for each of its GPUs.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class AlignConfig(Optimizer, Lora, Prompt, Loading, Seed):
    """Parameters of DPO (Rafailov et al. 2023)."""

    GROUP = "DPO"

    beta: float = parameter(0.1, "Strength of the pull towards the reference model.", above=0)
    epochs: int = parameter(1, "Number of epochs over the preference pairs.", at_least=1)
    batch_size: int = parameter(8, "Preference pairs in one optimiser step.", at_least=1)
    learning_rate: float = 5e-5
    lora_dropout: float = parameter(
        0.05,
        "Dropout on the LoRA input in later fine-tuning of the adapter; DPO itself uses none.",
        at_least=0,
        below=1,
    )


def check_processes(config: FinetuneConfig, total: int) -> None:
    """Refuse a run that so many processes can't share.

    Args:
        config: parameters of the run.
        total: its processes, on all machines together.

    Raises:
        ConfigError: there are more of them than questions in a batch, or one alone for a model that is to be
            spread.
    """
    if config.batch_size < total:
        raise ConfigError(
            f"`batch_size` is {config.batch_size}, and each of {total} processes takes at least one question "
            "of a batch; give a larger `batch_size`, or fewer processes"
        )
    if config.placement == "fsdp" and total == 1:
        raise ConfigError(
            "`placement` is 'fsdp', which spreads the model over several processes, and there is one; raise "
            "`processes`, or give `placement=whole` or `placement=qlora`"
        )

"""Parameters of training: calibration-aware fine-tuning, and the alignment by DPO that precedes it."""

from __future__ import annotations

from dataclasses import dataclass

from calib_core.settings.checks import ConfigCheck


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Parameters of calibration-aware fine-tuning (Xiao et al. 2025, sections 4 and 5).

    Attributes:
        aim: `calibration` (stop where the calibration fold says so) or `accuracy` (train as far as held-out
            accuracy rises).
        epochs: Most passes over the fit fold; training stops earlier when the calibration fold says so.
        learning_rate: Peak learning rate of AdamW.
        batch_size: Questions whose mean loss gives one gradient, over all processes.
        pass_tokens: Padded tokens in one forward and backward pass of a process; a longer batch is computed
            in several, which changes its memory and not its gradient.
        gradient_accumulation: Batches whose gradients are added up into one optimiser step.
        warmup_fraction: Share of the steps in which the learning rate rises; a cosine follows.
        max_grad_norm: Gradient norm above which gradients are scaled down.
        lora_r: Rank of the LoRA update (an input adapter keeps its own).
        lora_alpha: LoRA scale: the update is multiplied by lora_alpha / lora_r.
        lora_dropout: Dropout on the LoRA input.
        evaluations_per_epoch: How often the calibration fold is scored to choose where to stop.
        patience: Evaluations without improvement after which training stops.
        option_orders: Order of a question's options while training: `cyclic` (moved on by one place every
            epoch, so that the answer comes under every letter) or `given`.
        lambda_ece: Weight of the EM-ECE loss in RCFT, at the beginning where `adapt_weights` is on.
        label_smoothing: Share of the answer's probability that CFT spreads over the options, at the
            beginning where `adapt_weights` is on.
        adapt_weights: Raise and lower these two while training, as the calibration fold shows too much or
            too little confidence.
        e_steps_per_epoch: How often RCFT estimates its target confidences again.
        estimation_fold: Where they are estimated: `holdout` (the calibration fold), `fit`, or `initial` (fit,
            once, before training).
        prompt_form: `plain` (Question, options, "Answer:") or `chat` (the tokenizer's chat template).
        shots: How many worked examples, taken from the fit fold, stand before each question.
        dtype: `auto` (bfloat16 where the hardware computes it), `float32` or `bfloat16`.
        base_model: Folder, gs:// URI or hub id of the base model, where the one that an adapter names has
            moved.
        batch_tokens: Padded tokens in one forward pass of an evaluation.
        n_bins: Equal-width confidence bins of the targets and of every binned figure.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        critical_accuracy: Accuracy of the target model, where it is known (human agreement, say); estimated
            if left out.
        seed: Seed of the LoRA weights, the order of questions and dropout.
        placement: How the base model lies in memory: `whole` (a copy in each process), `fsdp` (spread over
            the processes) or `qlora` (a copy in each process, in 4 bits).
        processes: Processes on each machine, one for each of its GPUs.
        nodes: Machines; more than one are started as a job on the cluster that `cluster` describes.
        cluster: JSON object that describes the job on several machines; see docs/distributed.md.
    """

    aim: str = "calibration"
    epochs: int = 5
    learning_rate: float = 5e-4
    batch_size: int = 8
    pass_tokens: int = 2048
    gradient_accumulation: int = 1
    warmup_fraction: float = 0.1
    max_grad_norm: float = 1.0
    lora_r: int = 128
    lora_alpha: int = 64
    lora_dropout: float = 0.05
    evaluations_per_epoch: int = 2
    patience: int = 2
    option_orders: str = "cyclic"
    lambda_ece: float = 1.0
    label_smoothing: float = 0.0
    adapt_weights: bool = True
    e_steps_per_epoch: int = 4
    estimation_fold: str = "holdout"
    prompt_form: str = "plain"
    shots: int = 0
    dtype: str = "auto"
    base_model: str = ""
    batch_tokens: int = 4096
    n_bins: int = 10
    target_ece: float = 0.08
    tolerance: float = 0.05
    critical_accuracy: float | None = None
    seed: int = 0
    placement: str = "whole"
    processes: int = 1
    nodes: int = 1
    cluster: str = ""

    def __post_init__(self) -> None:
        check = ConfigCheck(self)
        check.one_of("aim", ("calibration", "accuracy"))
        check.one_of("option_orders", ("cyclic", "given"))
        check.one_of("estimation_fold", ("holdout", "fit", "initial"))
        check.one_of("prompt_form", ("plain", "chat"))
        check.one_of("dtype", ("auto", "float32", "bfloat16"))
        check.one_of("placement", ("whole", "fsdp", "qlora"))
        for name in (
            *("epochs", "batch_size", "pass_tokens", "gradient_accumulation", "lora_r", "lora_alpha"),
            *("evaluations_per_epoch", "patience", "e_steps_per_epoch", "batch_tokens", "n_bins"),
            *("processes", "nodes"),
        ):
            check.value(name, lambda n: n >= 1, "1 or more")
        for name in ("learning_rate", "max_grad_norm"):
            check.value(name, lambda x: x > 0, "more than 0")
        for name in ("lora_dropout", "warmup_fraction", "label_smoothing", "tolerance"):
            check.value(name, lambda share: 0 <= share < 1, "0 or more and below 1")
        check.value("lambda_ece", lambda weight: weight >= 0, "0 or more")
        for name in ("shots", "seed"):
            check.value(name, lambda n: n >= 0, "0 or more")
        check.value("target_ece", lambda ece: 0 < ece < 1, "an ECE above 0 and below 1")
        check.value("critical_accuracy", lambda share: 0 <= share <= 1, "a share from 0 to 1")
        check.that(
            lambda c: c.batch_size >= c.processes * c.nodes,
            f"batch_size is {self.batch_size}, and each of {self.processes} x {self.nodes} processes "
            "(processes x nodes) takes one question of a batch at least; give a larger batch_size or fewer "
            "processes",
        )
        check.that(
            lambda c: c.placement != "fsdp" or c.processes * c.nodes > 1,
            "placement is 'fsdp', which spreads the model over several processes, with one process; raise "
            "processes or nodes, or give 'whole' or 'qlora'",
        )
        check.finish()


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Parameters of DPO (Rafailov et al. 2023).

    Attributes:
        beta: Strength of the pull towards the reference model.
        learning_rate: Peak learning rate of AdamW.
        epochs: Passes over the preference pairs.
        batch_size: Pairs in one optimiser step.
        lora_r: Rank of the LoRA update.
        lora_alpha: LoRA scale: the update is multiplied by lora_alpha / lora_r.
        lora_dropout: Dropout on the LoRA input in later fine-tuning of the adapter; DPO itself uses none.
        warmup_fraction: Share of the steps in which the learning rate rises; a cosine follows.
        max_grad_norm: Gradient norm above which gradients are scaled down.
        prompt_form: `plain` (Question, options, "Answer:") or `chat` (the tokenizer's chat template), where
            the test questions are measured.
        shots: How many worked examples, taken from the fit fold, stand before each question there.
        dtype: `auto` (bfloat16 where the hardware computes it), `float32` or `bfloat16`.
        base_model: Folder, gs:// URI or hub id of the base model, where the one that an adapter names has
            moved.
        seed: Seed of the LoRA weights, the order of pairs and dropout.
    """

    beta: float = 0.1
    learning_rate: float = 5e-5
    epochs: int = 1
    batch_size: int = 8
    lora_r: int = 128
    lora_alpha: int = 64
    lora_dropout: float = 0.05
    warmup_fraction: float = 0.1
    max_grad_norm: float = 1.0
    prompt_form: str = "plain"
    shots: int = 0
    dtype: str = "auto"
    base_model: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        check = ConfigCheck(self)
        check.one_of("prompt_form", ("plain", "chat"))
        check.one_of("dtype", ("auto", "float32", "bfloat16"))
        for name in ("epochs", "batch_size", "lora_r", "lora_alpha"):
            check.value(name, lambda n: n >= 1, "1 or more")
        for name in ("beta", "learning_rate", "max_grad_norm"):
            check.value(name, lambda x: x > 0, "more than 0")
        for name in ("lora_dropout", "warmup_fraction"):
            check.value(name, lambda share: 0 <= share < 1, "a share from 0 to below 1")
        for name in ("shots", "seed"):
            check.value(name, lambda n: n >= 0, "0 or more")
        check.finish()

"""Component `cft_finetune`: calibration-aware fine-tuning, for the calibratable regime."""

from typing import NamedTuple, Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def cft_finetune(  # noqa: D417 - outputs stand under Returns
    model: str,
    data: Input[Dataset],
    adapter: Output[Model],
    nodes: int = 1,
    cluster: str = "",
    aim: str = "calibration",
    epochs: int = 5,
    batch_size: int = 8,
    pass_tokens: int = 2048,
    gradient_accumulation: int = 1,
    evaluations_per_epoch: int = 2,
    patience: int = 2,
    option_orders: str = "cyclic",
    lambda_ece: float = 1.0,
    label_smoothing: float = 0.0,
    adapt_weights: bool = True,
    e_steps_per_epoch: int = 4,
    estimation_fold: str = "holdout",
    remainder: str = "tempered",
    placement: str = "whole",
    processes: int = 1,
    learning_rate: float = 0.0005,
    warmup_fraction: float = 0.1,
    max_grad_norm: float = 1.0,
    lora_r: int = 128,
    lora_alpha: int = 64,
    lora_dropout: float = 0.05,
    shots: int = 0,
    prompt_form: str = "plain",
    dtype: str = "auto",
    base_model: str = "",
    batch_tokens: int = 4096,
    target_ece: float = 0.08,
    tolerance: float = 0.05,
    critical_accuracy: Optional[float] = None,  # noqa: UP045 (KFP reads no `| None`)
    n_bins: int = 10,
    seed: int = 0,
) -> NamedTuple("Outputs", uri=str, branch=str):  # type: ignore[valid-type]
    """Restore calibration by fine-tuning on the answers alone (CFT).

    For models in the calibratable regime (Xiao et al. 2025).

    Args:
        model: Model or adapter: a hub id (`name` or `name@revision`), a bucket's URI, or a path on a mounted
            volume.
        data: Data folder of `data_prep`.
        nodes: Number of machines; several are started as a job on the cluster that `cluster` describes.
        cluster: JSON object that describes the job on several machines; see docs/distributed.md.
        aim: `calibration` (stop when the calibration fold no longer improves) or `accuracy` (train as long as
            held-out accuracy rises).
        epochs: Maximum number of epochs; training stops earlier if the calibration fold no longer improves.
        batch_size: Questions whose mean loss gives one gradient, over all processes.
        pass_tokens: Padded tokens in one forward and backward pass of a process; a longer batch is computed
            in several, which changes its memory and not its gradient.
        gradient_accumulation: Batches whose gradients are added up into one optimiser step.
        evaluations_per_epoch: How often the calibration fold is scored to choose where to stop.
        patience: Evaluations without improvement after which training stops.
        option_orders: Order of a question's options while training: `cyclic` (shifted by one place every
            epoch, so that the answer comes under every letter) or `given`.
        lambda_ece: Weight of the EM-ECE loss in RCFT; the initial one if `adapt_weights` is on.
        label_smoothing: Share of the answer's probability that CFT spreads over the options; the initial one
            if `adapt_weights` is on.
        adapt_weights: Raise and lower these two while training, as the calibration fold shows too much or too
            little confidence.
        e_steps_per_epoch: How often RCFT estimates its target confidences again.
        estimation_fold: Where they are estimated: `holdout` (the calibration fold), `fit`, or `initial` (fit,
            once, before training).
        remainder: What RCFT asks of the options below the top one: `tempered` (the model's own distribution
            at the temperature that gives the top option its target) or `tanh` (the paper's map).
        placement: How the base model lies in memory while it is trained: `whole` (a copy in each process),
            `fsdp` (spread over the processes) or `qlora` (a copy in each process, in 4 bits).
        processes: Training processes on each machine, one for each of its GPUs.
        learning_rate: Peak learning rate of AdamW.
        warmup_fraction: Share of the steps in which the learning rate rises; a cosine follows.
        max_grad_norm: Gradient norm above which gradients are scaled down.
        lora_r: Rank of the LoRA update (an input adapter keeps its own).
        lora_alpha: LoRA scale: the update is multiplied by lora_alpha / lora_r.
        lora_dropout: Dropout on the LoRA input.
        shots: Number of worked examples, taken from the fit fold, that stand before each question.
        prompt_form: `plain` (Question, options, "Answer:") or `chat` (the tokenizer's chat template).
        dtype: `auto` (bfloat16 if the hardware supports it), `float32` or `bfloat16`.
        base_model: Folder, bucket URI or hub id of the base model, if the one that an adapter names has
            moved.
        batch_tokens: Padded tokens in one forward pass.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        critical_accuracy: Accuracy of the target model, if it is known (human agreement, say); otherwise it
            is estimated.
        n_bins: Equal-width confidence bins of every binned figure.
        seed: Seed of everything that is drawn at random.

    Returns:
        adapter: Adapter folder in PEFT's format, with calibration.json.
        uri: The adapter's URI, so that branches of a pipeline can be merged on a string.
        branch: `cft`, the name of the branch that this component is.
    """
    arguments = locals()
    from calib_components.nodes.job import JobConfig, Place
    from calib_components.nodes.nodes import finetune
    from calib_core.settings.parameters import config_from
    from calib_core.steps.task import reported_errors

    with reported_errors():
        finetune(
            "cft",
            config_from(JobConfig, arguments),
            model=Place(path=model, uri=model),
            data=Place(path=data.path, uri=data.uri),
            adapter=Place(path=adapter.path, uri=adapter.uri),
        )
    adapter.metadata["model"] = model
    return (adapter.uri, "cft")

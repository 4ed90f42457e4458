"""Fine-tune: CFT (calibratable regime) and RCFT (non-calibratable regime) of a model on the fit fold."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from calib_core.errors import ConfigError
from calib_core.runtime import processes
from calib_core.settings.checks import ConfigCheck
from calib_core.settings.parameters import flags_of
from calib_core.steps.folder import check_sizes, read_data
from calib_core.storage.files import cache_dir, check_output_folder, read_json, sha256_json
from calib_core.version import __version__

RUN_WHERE = ("processes", "nodes", "cluster")
"""Parameters that say where a run takes place, and nothing of what it computes."""


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
        label_smoothing: Share of the answer's probability that CFT spreads over the options, at the beginning
            where `adapt_weights` is on.
        adapt_weights: Raise and lower these two while training, as the calibration fold shows too much or too
            little confidence.
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


def cft(config: FinetuneConfig, model: str, data: Path, out: Path) -> dict[str, Any]:
    """Fine-tune on the answers alone, `L_SFT1` (Xiao et al. 2025, section 4).

    With `aim` `accuracy` the run goes on with RCFT's loss from the epoch at which the bound says that the
    model has left the calibratable regime. With several `processes` this one starts them and waits; one of
    several that have been started already does its part.

    Args:
        config: parameters of the run.
        model: model folder, adapter folder (it is trained on) or hub id.
        data: data folder of `prepare`.
        out: adapter folder to write, whole or not at all.

    Returns:
        What `calibration.json` says of the run: every evaluation of the calibration fold, which one was kept
        and why training stopped, the temperature that scoring divides its logits by, parameters,
        fingerprints of the data, seconds.

    Raises:
        CalibError: the model, the data or a parameter can't be used, the loss is not finite, or nothing was
            learned.
    """
    return _finetune(config, model, data, out, "cft")


def rcft(config: FinetuneConfig, model: str, data: Path, out: Path) -> dict[str, Any]:
    """Fine-tune on questions and answers towards EM targets, `L_SFT2 + lambda * L_ECE`.

    Source: Xiao et al. 2025, section 5.

    Arguments, result and errors are those of `cft`.
    """
    return _finetune(config, model, data, out, "rcft")


def _finetune(
    config: FinetuneConfig, model: str, data: Path, out: Path, method: Literal["cft", "rcft"]
) -> dict[str, Any]:
    if not processes.launched() and config.processes * config.nodes > 1:
        return _launched(config, model, data, out, method)
    import torch  # noqa: PLC0415 (commands without models do without)

    from calib_core.models.loading import load_model  # noqa: PLC0415
    from calib_core.scoring.prompts import PromptEncoder, PromptForm  # noqa: PLC0415
    from calib_core.scoring.questions import encode_questions, score_encoded  # noqa: PLC0415
    from calib_core.training.checkpoints import drop_checkpoint  # noqa: PLC0415
    from calib_core.training.loop import Finetuning  # noqa: PLC0415
    from calib_core.training.lora import attach_lora, save_adapter  # noqa: PLC0415
    from calib_core.training.orders import CyclicOrders  # noqa: PLC0415

    started_s = time.monotonic()
    check_output_folder(out, "calibration.json", inputs=(model, data))
    processes.join()
    prepared = read_data(data, shots=config.shots)
    if config.aim == "accuracy" and method == "cft":  # the regime test decides when CFT is left
        check_sizes(prepared, target_ece=config.target_ece, n_bins=config.n_bins)
    loaded = load_model(
        model,
        base_model=config.base_model,
        dtype=cast(Literal["auto", "float32", "bfloat16"], config.dtype),
        trainable=True,
        placement=cast(Literal["whole", "fsdp", "qlora"], config.placement),
    )
    origin = loaded.describe()
    attach_lora(loaded, config)
    form = PromptForm(form=cast(Literal["plain", "chat"], config.prompt_form), shots=prepared.shots)
    encoder = PromptEncoder(loaded.tokenizer, form)
    encode = functools.partial(encode_questions, encoder=encoder, context_tokens=loaded.context_tokens)
    fit, heldout = (encode(prepared.folds[name]) for name in ("fit", "calibration"))
    orders = CyclicOrders(fit, encode, context_tokens=loaded.context_tokens, seed=config.seed)
    # A run that goes on may have more processes or fewer.
    training = {name: value for name, value in asdict(config).items() if name not in RUN_WHERE}
    content = [__version__, method, training, origin, prepared.fingerprints()]
    work = cache_dir() / "training" / sha256_json(content)[:32]
    run = Finetuning(
        config,
        loaded,
        orders if config.option_orders == "cyclic" else lambda _: fit,
        score_fit=lambda: score_encoded(
            loaded, fit, batch_tokens=config.batch_tokens, description="scoring fit"
        ),
        score_heldout=lambda: score_encoded(
            loaded, heldout, batch_tokens=config.batch_tokens, description="scoring calibration"
        ),
        objective=method,
        work=work,
    )
    try:
        result = run.run()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU's memory of this machine is too small ({str(error).partition('.')[0]}); use fewer "
            "pass_tokens, fewer batch_tokens, a smaller lora_r, placement 'fsdp' on more processes or "
            "'qlora', or a larger GPU (docs/distributed.md has the arithmetic)"
        ) from error
    record = {
        "method": method,
        "input_adapter": origin["adapter"],
        "data": prepared.fingerprints(),
        "parameters": asdict(config),
        "prompt": encoder.describe(),
        "history": [
            {**asdict(evaluation), "chosen": index == result.chosen}
            for index, evaluation in enumerate(result.history)
        ],
        "temperature": result.temperature,
        "steps": result.steps,
        "stopped": result.stopped,
        "seconds": time.monotonic() - started_s,
    }
    save_adapter(loaded, out, record)
    processes.from_first(lambda: drop_checkpoint(work))
    return record


def _launched(
    config: FinetuneConfig, model: str, data: Path, out: Path, method: Literal["cft", "rcft"]
) -> dict[str, Any]:
    """The same in several processes of this machine."""
    from calib_core.steps.launch import launch  # noqa: PLC0415

    if config.nodes > 1:
        raise ConfigError(
            f"nodes is {config.nodes}, and this is one machine; a job on several is started by the command "
            f"`calib {method}` or by the fine-tuning component, with `cluster`; or give nodes 1 and more "
            "processes"
        )
    read_data(data, shots=config.shots)  # so that a wrong folder is told before anything is started
    launch(
        config.processes,
        [method, f"--model={model}", f"--data={data}", f"--out={out}", *flags_of(config)],
    )
    return dict(read_json(out / "calibration.json"))

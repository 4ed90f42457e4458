"""Fine-tune: CFT (calibratable regime) and RCFT (non-calibratable regime) of a model on the fit fold."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from calib_core.config import ConfigCheck
from calib_core.data_folder import check_sizes, read_data
from calib_core.files import cache_dir, check_output_folder, sha256_json
from calib_core.version import __version__


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Parameters of calibration-aware fine-tuning (Xiao et al. 2025, sections 4 and 5).

    Attributes:
        aim: `calibration` (stop where the calibration fold says so) or `accuracy` (train as far as held-out
            accuracy rises).
        epochs: Most passes over the fit fold; training stops earlier when the calibration fold says so.
        learning_rate: Peak learning rate of AdamW.
        batch_size: Questions in one forward and backward pass, over all processes.
        gradient_accumulation: Passes whose gradients are added up into one optimiser step.
        warmup_fraction: Share of the steps in which the learning rate rises; a cosine follows.
        max_grad_norm: Gradient norm above which gradients are scaled down.
        lora_r: Rank of the LoRA update (an input adapter keeps its own).
        lora_alpha: LoRA scale: the update is multiplied by lora_alpha / lora_r.
        lora_dropout: Dropout on the LoRA input.
        evaluations_per_epoch: How often the calibration fold is scored to choose where to stop.
        patience: Evaluations without improvement after which training stops.
        lambda_ece: Weight of the EM-ECE loss in RCFT.
        e_steps_per_epoch: How often RCFT estimates its target confidences again.
        estimation_fold: Where they are estimated: `holdout` (the calibration fold), `fit`, or `initial` (fit,
            once, before training).
        prompt_form: `plain` (Question, options, "Answer:") or `chat` (the tokenizer's chat template).
        shots: How many worked examples, taken from the fit fold, stand before each question.
        dtype: `auto` (bfloat16 where the hardware computes it), `float32` or `bfloat16`.
        base_model: Folder or hub id of the base model, where the one that an adapter names has moved.
        batch_tokens: Padded tokens in one forward pass of an evaluation.
        n_bins: Equal-width confidence bins of the targets and of every binned figure.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        critical_accuracy: Accuracy of the target model, where it is known (human agreement, say); estimated
            if left out.
        seed: Seed of the LoRA weights, the order of questions and dropout.
    """

    aim: str = "calibration"
    epochs: int = 5
    learning_rate: float = 5e-4
    batch_size: int = 8
    gradient_accumulation: int = 1
    warmup_fraction: float = 0.1
    max_grad_norm: float = 1.0
    lora_r: int = 128
    lora_alpha: int = 64
    lora_dropout: float = 0.05
    evaluations_per_epoch: int = 2
    patience: int = 2
    lambda_ece: float = 1.0
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

    def __post_init__(self) -> None:
        check = ConfigCheck(self)
        check.one_of("aim", ("calibration", "accuracy"))
        check.one_of("estimation_fold", ("holdout", "fit", "initial"))
        check.one_of("prompt_form", ("plain", "chat"))
        check.one_of("dtype", ("auto", "float32", "bfloat16"))
        for name in (
            *("epochs", "batch_size", "gradient_accumulation", "lora_r", "lora_alpha"),
            *("evaluations_per_epoch", "patience", "e_steps_per_epoch", "batch_tokens", "n_bins"),
        ):
            check.value(name, lambda n: n >= 1, "1 or more")
        for name in ("learning_rate", "max_grad_norm"):
            check.value(name, lambda x: x > 0, "more than 0")
        for name in ("lora_dropout", "warmup_fraction", "tolerance"):
            check.value(name, lambda share: 0 <= share < 1, "0 or more and below 1")
        check.value("lambda_ece", lambda weight: weight >= 0, "0 or more")
        for name in ("shots", "seed"):
            check.value(name, lambda n: n >= 0, "0 or more")
        check.value("target_ece", lambda ece: 0 < ece < 1, "an ECE above 0 and below 1")
        check.value("critical_accuracy", lambda share: 0 <= share <= 1, "a share from 0 to 1")
        check.finish()


def cft(config: FinetuneConfig, model: str, data: Path, out: Path) -> dict[str, Any]:
    """Fine-tune on the answers alone, `L_SFT1` (Xiao et al. 2025, section 4).

    With `aim` `accuracy` the run goes on with RCFT's loss from the epoch at which the bound says that the
    model has left the calibratable regime.

    Args:
        config: parameters of the run.
        model: model folder, adapter folder (it is trained on) or hub id.
        data: data folder of `prepare`.
        out: adapter folder to write, whole or not at all.

    Returns:
        What `calibration.json` says of the run: every evaluation of the calibration fold, which one was kept
        and why training stopped, parameters, fingerprints of the data, seconds.

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
    from calib_core.checkpoints import drop_checkpoint  # noqa: PLC0415
    from calib_core.lora import attach_lora, save_adapter  # noqa: PLC0415 (torch: commands without models do without)
    from calib_core.models import load_model  # noqa: PLC0415
    from calib_core.prompts import PromptEncoder, PromptForm  # noqa: PLC0415
    from calib_core.scoring import encode_questions, score_encoded  # noqa: PLC0415
    from calib_core.training import Finetuning  # noqa: PLC0415

    started_s = time.monotonic()
    check_output_folder(out, "calibration.json", inputs=(model, data))
    prepared = read_data(data, shots=config.shots)
    if config.aim == "accuracy" and method == "cft":  # the regime test decides when CFT is left
        check_sizes(prepared, target_ece=config.target_ece, n_bins=config.n_bins)
    loaded = load_model(
        model,
        base_model=config.base_model,
        dtype=cast(Literal["auto", "float32", "bfloat16"], config.dtype),
        trainable=True,
    )
    origin = loaded.describe()
    attach_lora(loaded, config)
    form = PromptForm(form=cast(Literal["plain", "chat"], config.prompt_form), shots=prepared.shots)
    encoder = PromptEncoder(loaded.tokenizer, form)
    fit, heldout = (
        encode_questions(prepared.folds[name], encoder, context_tokens=loaded.context_tokens)
        for name in ("fit", "calibration")
    )
    content = [__version__, method, asdict(config), origin, prepared.fingerprints()]
    work = cache_dir() / "training" / sha256_json(content)[:32]
    run = Finetuning(
        config,
        loaded,
        fit,
        score_fit=lambda: score_encoded(
            loaded, fit, batch_tokens=config.batch_tokens, description="scoring fit"
        ),
        score_heldout=lambda: score_encoded(
            loaded, heldout, batch_tokens=config.batch_tokens, description="scoring calibration"
        ),
        objective=method,
        work=work,
    )
    result = run.run()
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
        "steps": result.steps,
        "stopped": result.stopped,
        "seconds": time.monotonic() - started_s,
    }
    save_adapter(loaded, out, record)
    drop_checkpoint(work)
    return record

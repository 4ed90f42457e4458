"""Align: direct preference optimisation of a model on preference pairs (the step that breaks calibration)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from calib_core.metrics.figures import summarize
from calib_core.runtime.progress import say
from calib_core.settings.checks import ConfigCheck
from calib_core.steps.folder import read_data, read_pairs, required_pairs
from calib_core.storage.files import check_output_folder


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


def align(config: AlignConfig, model: str, data: Path, out: Path) -> dict[str, Any]:
    """Align a model by DPO on the data folder's preference pairs.

    Args:
        config: parameters of the alignment.
        model: model folder, adapter folder (it is trained on) or hub id.
        data: data folder of `prepare`, with preference pairs.
        out: adapter folder to write, whole or not at all.

    Returns:
        What `calibration.json` says of the run: figures of training, win rate on held-out pairs before and
        after, and the test questions' figures before (`unaligned`), against which alignment's harm is seen.

    Raises:
        CalibError: the model, the data or a parameter can't be used, or nothing was learned.
    """
    from calib_core.models.loading import load_model  # noqa: PLC0415
    from calib_core.scoring.pairs import sequence_logprobs, win_rate  # noqa: PLC0415
    from calib_core.scoring.prompts import PromptEncoder, PromptForm  # noqa: PLC0415
    from calib_core.scoring.questions import score  # noqa: PLC0415
    from calib_core.training.dpo import align_with_dpo  # noqa: PLC0415 (torch, which commands without models do without)
    from calib_core.training.lora import attach_lora, save_adapter  # noqa: PLC0415

    started_s = time.monotonic()
    check_output_folder(out, "calibration.json", inputs=(model, data))
    pairs, held_out = required_pairs(data), read_pairs(data, "test")
    loaded = attach_lora(
        load_model(
            model,
            base_model=config.base_model,
            dtype=cast(Literal["auto", "float32", "bfloat16"], config.dtype),
            trainable=True,
        ),
        config,
    )
    prepared = read_data(data, shots=config.shots)
    form = PromptForm(form=cast(Literal["plain", "chat"], config.prompt_form), shots=prepared.shots)
    encoder = PromptEncoder(loaded.tokenizer, form)
    unaligned = score(loaded, prepared.folds["test"], encoder, description="scoring test before alignment")
    before = win_rate(sequence_logprobs(loaded, held_out))
    figures = align_with_dpo(config, loaded, pairs)
    after = win_rate(sequence_logprobs(loaded, held_out))
    shares = (before["sum"]["value"], after["sum"]["value"])
    say(f"win rate on {after['n']} held-out pairs: {shares[0]:.3f} -> {shares[1]:.3f}")
    record = {
        "method": "dpo",
        "data": prepared.record["preferences"],
        "parameters": asdict(config),
        "training": figures,
        "unaligned": summarize(unaligned),
        "win_rate": {"before": before, "after": after},
        "seconds": time.monotonic() - started_s,
    }
    save_adapter(loaded, out, record)
    return record

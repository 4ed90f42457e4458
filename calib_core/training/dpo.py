"""Direct preference optimisation, by trl's trainer: the alignment step that breaks calibration.

Source: Rafailov et al. 2023, *Direct Preference Optimization*; Xiao et al. 2025, section 3 (preference
collapse).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer

from calib_core.data.preferences import Preference
from calib_core.errors import CalibError
from calib_core.models.loading import LoadedModel, adapter_digest
from calib_core.runtime.progress import Progress
from calib_core.scoring.pairs import EncodedPreference, encode_preferences, encoded_logprobs
from calib_core.training.config import AlignConfig


class _TokenizedTrainer(DPOTrainer):
    """Takes pairs as token ids, with the reference's log-probabilities beside them.

    trl would let markup in user text turn into special tokens, and computes the reference's figures batch by
    batch in the pairs' order; ours come from batches of like length.
    """

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        return dataset


class _Report(TrainerCallback):
    """Feeds the project's progress line from trl's steps, and stops at a loss that is not finite."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise CalibError(
                    f"the DPO loss is not finite at step {state.global_step}; use a lower learning_rate, or "
                    "dtype float32"
                )
            accuracy = logs.get("rewards/accuracies", math.nan)
            self._progress.advance(0, note=f"loss {logs['loss']:.3f}, preferred more {accuracy:.2f}")


def align_with_dpo(config: AlignConfig, loaded: LoadedModel, pairs: Sequence[Preference]) -> dict[str, Any]:
    """Train `loaded.model`'s LoRA on preference pairs; the reference is the model as it came, computed once.

    Args:
        config: the run's parameters.
        loaded: a model with a trainable adapter (`training.attach_lora`); changed in place.
        pairs: the preference pairs to train on.

    Returns:
        JSON-able figures: pairs, steps, first and last logged loss.

    Raises:
        DataFormatError: a pair is longer than the model's context (all of them are named).
        CalibError: the loss is not finite, or the adapter has not changed.
    """
    end = [loaded.tokenizer.eos_token_id] if loaded.tokenizer.eos_token_id is not None else []
    digest_before = adapter_digest(loaded.model)
    rows = [_ended(row, end) for row in encode_preferences(loaded, pairs)]
    reference = encoded_logprobs(loaded, rows, description="reference of dpo")
    table = datasets.Dataset.from_list(
        [
            {
                "prompt_ids": row.prompt,
                "chosen_ids": row.chosen,
                "rejected_ids": row.rejected,
                "ref_chosen_logps": chosen,
                "ref_rejected_logps": rejected,
            }
            for row, (chosen, rejected) in zip(rows, reference.tolist(), strict=True)
        ]
    )
    steps = math.ceil(len(rows) / config.batch_size) * config.epochs
    with tempfile.TemporaryDirectory() as folder, Progress("dpo", total=steps, unit="steps") as progress:
        trainer = _TokenizedTrainer(
            model=loaded.model,
            args=_arguments(config, folder, steps),
            train_dataset=table,
            processing_class=loaded.tokenizer,
            callbacks=[_Report(progress)],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if "ref" in loaded.model.peft_config:
        loaded.model.delete_adapter("ref")
    if adapter_digest(loaded.model) == digest_before:
        raise CalibError("DPO left the adapter exactly as it was; use a larger learning_rate or more pairs")
    return {"pairs": len(rows), "steps": steps, "first_loss": losses[0], "last_loss": losses[-1]}


def _ended(row: EncodedPreference, end: list[int]) -> EncodedPreference:
    return EncodedPreference(prompt=row.prompt, chosen=row.chosen + end, rejected=row.rejected + end)


def _arguments(config: AlignConfig, folder: str, steps: int) -> DPOConfig:
    return DPOConfig(
        output_dir=folder,
        beta=config.beta,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=round(config.warmup_fraction * steps),
        max_grad_norm=config.max_grad_norm,
        precompute_ref_log_probs=True,
        max_length=None,
        bf16=False,  # the model's own dtype stands; the adapter is float32
        gradient_checkpointing=False,
        logging_steps=max(1, steps // 20),
        logging_nan_inf_filter=False,  # which would log a loss that isn't finite as 0
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
    )

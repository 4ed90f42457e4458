"""Align: direct preference optimisation of a model on preference pairs (the step that breaks calibration)."""

from __future__ import annotations

from dataclasses import dataclass


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
        lora_dropout: Dropout on the LoRA input.
        warmup_fraction: Share of the steps in which the learning rate rises; a cosine follows.
        max_grad_norm: Gradient norm above which gradients are scaled down.
        dtype: `auto` (bfloat16 where the hardware computes it), `float32` or `bfloat16`.
        base_model: Folder or hub id of the base model, where the one that an adapter names has moved.
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
    dtype: str = "auto"
    base_model: str = ""
    seed: int = 0

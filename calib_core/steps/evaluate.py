"""Evaluate: score every fold with one model, measure it, and name the regime that its bounds put it in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Parameters of an evaluation.

    Attributes:
        prompt_form: `plain` (Question, options, "Answer:") or `chat` (the tokenizer's chat template).
        shots: How many worked examples, taken from the fit fold, stand before each question.
        dtype: `auto` (bfloat16 where the hardware computes it), `float32` or `bfloat16`.
        base_model: Folder or hub id of the base model, where the one that an adapter names has moved.
        batch_tokens: Padded tokens in one forward pass.
        n_bins: Equal-width confidence bins of every binned figure.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        critical_accuracy: Accuracy of the target model, where it is known (human agreement, say); estimated if left out.
        on_undecided: `branch` (go on as not shown to be calibrated) or `stop` where the interval straddles the target.
        n_resamples: Bootstrap resamples behind every interval.
        seed: Seed of the bootstrap.
    """

    prompt_form: str = "plain"
    shots: int = 0
    dtype: str = "auto"
    base_model: str = ""
    batch_tokens: int = 4096
    n_bins: int = 10
    target_ece: float = 0.08
    tolerance: float = 0.05
    critical_accuracy: float | None = None
    on_undecided: str = "branch"
    n_resamples: int = 1000
    seed: int = 0

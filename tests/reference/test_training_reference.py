"""CFT and RCFT against a plain loop: AdamW, schedule, clipping and losses by hand, one question at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trained
from tiny import save_tiny_model

from calib_core.decisions.target import em_target, estimate_bin_targets
from calib_core.models.loading import load_model
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import encode_questions, score_encoded
from calib_core.training.batches import LengthGroupedBatches
from calib_core.training.config import FinetuneConfig
from calib_core.training.loop import Finetuning
from calib_core.training.lora import attach_lora, trainable_parameters

# 13 questions in batches of 3 are 5 batches an epoch, the last of one question; two batches make a step, so
# an epoch has 3 steps. 90 tokens are two questions, so a batch is computed in passes of two and one. Some
# gradients are longer than the limit, and some are not: so their scale matters, which AdamW alone undoes.
CONFIG = FinetuneConfig(
    epochs=2,
    batch_size=3,
    gradient_accumulation=2,
    pass_tokens=90,
    learning_rate=1e-2,
    warmup_fraction=0.34,
    max_grad_norm=4.0,
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.0,
    option_orders="given",
    adapt_weights=False,
    label_smoothing=0.1,
    lambda_ece=3.0,
    evaluations_per_epoch=1,
    e_steps_per_epoch=1,
    patience=99,
    dtype="float32",
)
FIT, HELDOUT = trained.world(13, seed=1), trained.world(30, seed=2)
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("one-layer"), num_hidden_layers=1)


def prepared(folder, config):
    loaded = attach_lora(load_model(folder, dtype="float32", trainable=True), config)
    encoder = PromptEncoder(loaded.tokenizer, PromptForm())
    encoded = [encode_questions(fold, encoder, context_tokens=999) for fold in (FIT, HELDOUT)]
    return loaded, *encoded


def rate(step: int, config: FinetuneConfig) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then half a cosine down to 0."""
    warmup = round(config.warmup_fraction * STEPS)
    if step < warmup:
        return config.learning_rate * step / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))


def one_loss(model, encoded, row, objective, targets, config):
    """`L_SFT1`, smoothed over the letters, or `L_SFT2 + lambda * L_ECE`, of one question."""
    ids, letters = list(encoded.input_ids[row]), list(encoded.letter_ids[row])
    answer = encoded.questions[row].answer
    logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    log_p = logits.log_softmax(-1)
    if objective == "cft":
        smooth = -log_p[-1, letters].mean()
        return (1 - config.label_smoothing) * -log_p[-1, letters[answer]] + config.label_smoothing * smooth
    question = sum(-log_p[i, ids[i + 1]] for i in range(len(ids) - 1)) / (len(ids) - 1)
    p = logits[-1, letters].softmax(0)
    target = torch.from_numpy(em_target(p.detach().double().numpy()[None], targets)[0]).float()
    return question - log_p[-1, letters[answer]] + config.lambda_ece * ((p - target) ** 2).sum()


def plain_loop(folder, objective, config):
    loaded, fit, heldout = prepared(folder, config)
    model = loaded.model
    parameters = trainable_parameters(model)
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
    sampler = LengthGroupedBatches([len(ids) for ids in fit.input_ids], config.batch_size, config.seed)
    step, norms, rates = 0, [], []
    for epoch in range(config.epochs):
        sampler.epoch = epoch
        table = score_encoded(loaded, heldout)
        targets = estimate_bin_targets(table.confidence(), table.correct())
        batches = list(sampler)
        for index, rows in enumerate(batches):
            model.train()
            for row in rows:
                loss = one_loss(model, fit, row, objective, targets, config)
                for (name, _), g in zip(
                    parameters.items(), torch.autograd.grad(loss, list(parameters.values())), strict=True
                ):
                    gradient[name] += g / len(rows) / config.gradient_accumulation
            if (index + 1) % config.gradient_accumulation and index + 1 < len(batches):
                continue
            norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradient.values()))
            norms.append(norm)
            rates.append(rate(step, config))
            scale = min(1.0, config.max_grad_norm / (norm + 1e-6))
            step += 1
            with torch.no_grad():
                for name, p in parameters.items():
                    g = gradient[name] * scale
                    first[name] = 0.9 * first[name] + 0.1 * g
                    second[name] = 0.999 * second[name] + 0.001 * g * g
                    mean = first[name] / (1 - 0.9**step)
                    root = (second[name] / (1 - 0.999**step)).sqrt()
                    p.sub_(rates[-1] * mean / (root + 1e-8))
                    gradient[name].zero_()
    return {name: p.detach().clone() for name, p in parameters.items()}, norms, rates


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_training_follows_a_plain_loop(folder, tmp_path, objective) -> None:
    expected, norms, rates = plain_loop(folder, objective, CONFIG)
    assert len(norms) == STEPS
    assert min(norms) < CONFIG.max_grad_norm < max(norms)
    assert len(set(rates)) > 3

    loaded, fit, heldout = prepared(folder, CONFIG)
    start = {name: p.detach().clone() for name, p in trainable_parameters(loaded.model).items()}
    seen: list[dict[str, torch.Tensor]] = []

    def score_heldout():
        seen.append({n: p.detach().clone() for n, p in trainable_parameters(loaded.model).items()})
        return score_encoded(loaded, heldout)

    run = Finetuning(
        CONFIG,
        loaded,
        lambda _: fit,
        score_fit=lambda: score_encoded(loaded, fit),
        score_heldout=score_heldout,
        objective=objective,
        work=tmp_path / "work",
    )
    run.run()
    moved = max(float((expected[name] - start[name]).abs().max()) for name in expected)
    assert moved > 1e-2
    for name, tensor in expected.items():
        np.testing.assert_allclose(seen[-1][name].numpy(), tensor.numpy(), rtol=0, atol=2e-4 * moved)


def test_label_smoothing_and_the_weight_of_the_ece_loss_are_felt(folder) -> None:
    for objective, other in (
        ("cft", replace(CONFIG, label_smoothing=0.0)),
        ("rcft", replace(CONFIG, lambda_ece=1.0)),
    ):
        one, _, _ = plain_loop(folder, objective, CONFIG)
        two, _, _ = plain_loop(folder, objective, other)
        assert max(float((one[name] - two[name]).abs().max()) for name in one) > 1e-3

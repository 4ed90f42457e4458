"""Batches hold every question once, and a batch's loss is the mean of its questions' losses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_questions
from transformers import AutoModelForCausalLM, AutoTokenizer

from calib_core.decisions.target import ConfidenceTargets, em_target
from calib_core.errors import ConfigError
from calib_core.models.loading import load_model
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import encode_questions
from calib_core.training.batches import LengthGroupedBatches, cft_loss, passes, rcft_loss

QUESTIONS = make_questions(6, seed=4, options=(2, 3, 4, 7))
TARGETS = ConfidenceTargets(
    log_odds=np.linspace(-3, 5, 10), accuracy=np.linspace(0.3, 0.75, 10), estimator="given"
)
ROWS = [4, 0, 3, 5, 1]

LENGTHS = np.random.default_rng(0).integers(5, 90, 203).tolist()


def batches(*, seed: int = 0, epoch: int = 0, size: int = 4) -> list[list[int]]:
    sampler = LengthGroupedBatches(LENGTHS, size, seed)
    sampler.epoch = epoch
    made = list(sampler)
    assert len(made) == len(sampler)
    return made


@pytest.mark.parametrize("size", [1, 4, 64, 203, 500])
def test_an_epoch_holds_every_row_once(size: int) -> None:
    made = batches(size=size)
    assert sorted(row for batch in made for row in batch) == list(range(203))
    assert sorted(map(len, made))[1:] == [size] * (len(made) - 1)  # at most one batch is not full


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    assert batches() == batches()
    assert batches(seed=1, epoch=3) == batches(seed=1, epoch=3)
    assert len({str(batches(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_rows_of_a_batch_are_of_similar_length_and_batches_are_shuffled() -> None:
    made = batches()
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in made)
    assert padded < 1.2 * sum(LENGTHS)  # shuffled without regard to length: 1.6
    longest = [max(LENGTHS[row] for row in batch) for batch in made]
    ascending = sum(a <= b for a, b in itertools.pairwise(longest)) / (len(made) - 1)
    assert 0.3 < ascending < 0.7


@given(st.lists(st.integers(0, 202), unique=True, min_size=1, max_size=40), st.integers(1, 1000))
def test_passes_hold_the_batch_in_its_order_within_their_bound(rows: list[int], pass_tokens: int) -> None:
    made = passes(rows, LENGTHS, pass_tokens)
    padded = [len(part) * max(LENGTHS[row] for row in part) for part in made]
    assert [row for part in made for row in part] == rows
    assert all(tokens <= pass_tokens or len(part) == 1 for tokens, part in zip(padded, made, strict=True))
    for part, following in itertools.pairwise(made):  # none could have been longer
        longest = max(LENGTHS[row] for row in [*part, following[0]])
        assert (len(part) + 1) * longest > pass_tokens


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setting(request, tiny_model):
    """Model and questions for the losses, and the same questions by plain transformers, one at a time."""
    folder = tiny_model(request.param)
    loaded = load_model(folder, dtype="float32")
    encoder = PromptEncoder(loaded.tokenizer, PromptForm())
    encoded = encode_questions(QUESTIONS, encoder, context_tokens=loaded.context_tokens)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return loaded.model, encoded, [one_by_one(plain, tokenizer, question) for question in QUESTIONS]


def one_by_one(model, tokenizer, question):
    """(L_SFT1, L_SFT2, L_ECE) of one question in float64, from its text."""
    options = "".join(
        f"\n{letter}. {text}" for letter, text in zip("ABCDEFG", question.choices, strict=False)
    )
    text = f"Question: {question.question}{options}\nAnswer:"
    prompt = tokenizer(text)["input_ids"]
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"] for letter in "ABCDEFG"]
    letters = [ids[0] for ids in letters[: len(question.choices)]]
    sequence = torch.tensor([[*prompt, letters[question.answer]]])
    with torch.no_grad():
        logits = model(sequence).logits[0, :-1].double()
    nll = -logits.log_softmax(dim=1)[torch.arange(len(prompt)), sequence[0, 1:]]
    p = logits[-1, letters].softmax(dim=0).numpy()
    target = em_target(p[None], TARGETS)[0]
    return float(nll[-1]), float(nll[:-1].mean() + nll[-1]), float(((p - target) ** 2).sum())


def mean(parts, index: int) -> float:
    return float(np.mean([parts[row][index] for row in ROWS]))


def test_cft_loss_is_the_mean_of_one_by_one_losses(setting) -> None:
    model, encoded, parts = setting
    assert cft_loss(model, encoded, ROWS).item() == pytest.approx(mean(parts, 0), abs=1e-5)


@pytest.mark.parametrize("lambda_ece", [0.0, 1.0, 2.5])
def test_rcft_loss_is_the_mean_of_one_by_one_losses(setting, lambda_ece: float) -> None:
    model, encoded, parts = setting
    expected = mean(parts, 1) + lambda_ece * mean(parts, 2)
    assert mean(parts, 2) > 0.01  # so that leaving it out would be seen
    assert rcft_loss(model, encoded, ROWS, TARGETS, lambda_ece=lambda_ece).item() == pytest.approx(
        expected, abs=1e-5
    )


def test_losses_of_a_batch_give_gradients_of_the_same_mean(setting) -> None:
    model, encoded, _ = setting
    weight = model.get_input_embeddings().weight

    def gradient(loss):
        return torch.autograd.grad(loss, weight)[0]

    alone = [gradient(rcft_loss(model, encoded, [row], TARGETS, lambda_ece=1.0)) for row in ROWS]
    together = gradient(rcft_loss(model, encoded, ROWS, TARGETS, lambda_ece=1.0))
    torch.testing.assert_close(together, torch.stack(alone).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert together.abs().max() > 1e-3


def test_rcft_without_targets_is_refused(setting) -> None:
    model, encoded, _ = setting
    with pytest.raises(ConfigError, match="E-step first"):
        rcft_loss(model, encoded, ROWS, None, lambda_ece=1.0)

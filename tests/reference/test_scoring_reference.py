"""Batched scoring against plain transformers, one question at a time, whole vocabulary at every position."""

from __future__ import annotations

from string import ascii_uppercase

import numpy as np
import pytest
import torch
from tiny import FAMILIES, make_questions
from transformers import AutoModelForCausalLM, AutoTokenizer

from calib_core.data.preferences import Preference
from calib_core.models.loading import load_model
from calib_core.scoring.pairs import sequence_logprobs
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import score

TOLERANCE = 1e-5


def prompt_text(question) -> str:
    lines = [f"{a}. {text}" for a, text in zip(ascii_uppercase, question.choices, strict=False)]
    return "\n".join([f"Question: {question.question}", *lines, "Answer:"])


def one_by_one(folder, prompts, letters_of):
    """Letter logits and letter mass, by the model's own logits at every position of one unpadded prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt, n_options in zip(prompts, letters_of, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        letters = [tokenizer(f"{prompt} {letter}")["input_ids"] for letter in ascii_uppercase[:n_options]]
        assert all(row[:-1] == ids for row in letters)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        chosen = [row[-1] for row in letters]
        yield logits[chosen].numpy(), float(logits.softmax(0)[chosen].sum())


@pytest.mark.parametrize(
    ("family", "shots"),
    [(family, 0) for family in sorted(FAMILIES)]
    + [(family, 2) for family in ("gemma2", "gpt2", "llama", "mistral-sliding")],
)
def test_scores_equal_plain_transformers(family, shots, tiny_model) -> None:
    folder = tiny_model(family)
    examples = tuple(make_questions(shots, seed=9))
    questions = make_questions(6, seed=1, options=(2, 3, 4, 5, 26))
    before = "".join(f"{prompt_text(shot)} {ascii_uppercase[shot.answer]}\n\n" for shot in examples)
    expected = list(
        one_by_one(folder, [before + prompt_text(q) for q in questions], [len(q.choices) for q in questions])
    )
    loaded = load_model(folder, dtype="float32")
    form = PromptForm(shots=examples)
    for batch_tokens in (1, 10**6):
        found = score(loaded, questions, PromptEncoder(loaded.tokenizer, form), batch_tokens=batch_tokens)
        assert found.ids == tuple(q.id for q in questions)
        for row, (logits, mass) in enumerate(expected):
            np.testing.assert_allclose(found.logits[row, : len(logits)], logits, rtol=0, atol=TOLERANCE)
            assert found.letter_mass[row] == pytest.approx(mass, abs=TOLERANCE)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "granite", "llama", "mistral-sliding", "phi"])
def test_pair_logprobs_equal_plain_transformers(family, tiny_model) -> None:
    folder = tiny_model(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [
        Preference(
            id=q.id, prompt=f"Question: {q.question}\nAnswer:", chosen=f" {q.choices[0]}", rejected=" west"
        )
        for q in make_questions(7, seed=2)
    ]
    found = sequence_logprobs(load_model(folder, dtype="float32"), pairs, batch_tokens=200)
    for row, pair in enumerate(pairs):
        start = len(tokenizer(pair.prompt)["input_ids"])
        for text, sums, lengths in (
            (pair.chosen, found.chosen_nats, found.chosen_tokens),
            (pair.rejected, found.rejected_nats, found.rejected_tokens),
        ):
            ids = torch.tensor([tokenizer(pair.prompt + text)["input_ids"]])
            with torch.no_grad():
                nats = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            expected = nats.gather(1, ids[0, 1:, None])[start - 1 :].sum()
            assert sums[row] == pytest.approx(float(expected), abs=1e-4)
            assert lengths[row] == ids.shape[1] - start

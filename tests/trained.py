"""Tiny models that were really trained: too sure, calibrated, or with their questions learnt by heart.

The world: one word of a question tells the letter of its answer, but annotators give another letter a quarter
of the time. So the target's top probability is 0.75, whatever the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiny
import torch
from torch.nn.functional import cross_entropy

from calib_core.data.questions import Question
from calib_core.models.loading import load_model
from calib_core.scoring.prompts import PromptEncoder, PromptForm

CUES = ("north", "south", "east", "west")
FILLERS = tuple(word for word in tiny.WORDS if word not in CUES)
RIGHT = 0.75
"""How often an annotator's letter is the one that the cue tells."""


def world(n: int, *, seed: int, right: float = RIGHT) -> list[Question]:
    """Draw `n` questions with annotators who are right at the rate `right`."""
    random = np.random.default_rng(seed)
    questions = []
    for index in range(n):
        cue = int(random.integers(4))
        words = [*random.choice(FILLERS, 7), CUES[cue]]
        random.shuffle(words)
        wrong = [letter for letter in range(4) if letter != cue]
        questions.append(
            Question(
                id=f"w{seed}-{index}",
                question=" ".join(words) + "?",
                choices=("one", "two", "three", "four"),
                answer=cue if random.random() < right else int(random.choice(wrong)),
            )
        )
    return questions


def train(folder: Path, out: Path, questions: Sequence[Question], *, epochs: int, seed: int = 0) -> Path:
    """Train all weights of the model in `folder` on the answers' letters, and write it to `out`."""
    torch.set_num_threads(1)
    loaded = load_model(folder, dtype="float32")
    encoder = PromptEncoder(loaded.tokenizer, PromptForm())
    letters = torch.tensor(encoder.letter_ids(4))
    prompts = [torch.tensor(encoder.encode(question)) for question in questions]
    answers = letters[torch.tensor([question.answer for question in questions])]
    torch.manual_seed(seed)
    model = loaded.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = epochs * -(-len(questions) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(questions)).split(32):
            ids = torch.nn.utils.rnn.pad_sequence([prompts[row] for row in rows], batch_first=True)
            last = torch.tensor([len(prompts[row]) for row in rows]) - 1
            logits = model(input_ids=ids).logits[torch.arange(len(rows)), last]
            optimizer.zero_grad()
            cross_entropy(logits, answers[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval().save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    return out

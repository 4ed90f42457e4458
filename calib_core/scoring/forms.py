"""Which prompt form a model answers with letters in, measured on a sample of the questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from calib_core.data.questions import Question
from calib_core.models.loading import LoadedModel
from calib_core.runtime.progress import say
from calib_core.scoring.prompts import Form, PromptEncoder, PromptForm
from calib_core.scoring.questions import score

FORMS: tuple[Form, ...] = ("plain", "chat")

SAMPLE = 64
"""Questions of the sample: the letter masses of single questions lie about 0.1 from their mean, so that a
form's mean is known within about 0.03."""


def letter_masses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    shots: Sequence[Question] = (),
    *,
    batch_tokens: int = 4096,
) -> dict[str, float]:
    """Mean letter mass of a sample of questions in each prompt form that the model has.

    The sample depends on the questions alone, so that each step that asks draws the same one.

    Args:
        loaded: the model.
        questions: what to draw `SAMPLE` of, all where there are fewer.
        shots: worked examples before every question.
        batch_tokens: padded tokens in one forward.

    Returns:
        By form; without `chat` where the tokenizer has no chat template.
    """
    drawn = random.Random(0).sample(range(len(questions)), min(SAMPLE, len(questions)))  # noqa: S311 (no secret)
    sample = [questions[row] for row in sorted(drawn)]
    masses: dict[str, float] = {}
    for name in FORMS:
        if name == "chat" and not getattr(loaded.tokenizer, "chat_template", None):
            continue
        encoder = PromptEncoder(loaded.tokenizer, PromptForm(form=name, shots=tuple(shots)))
        table = score(
            loaded,
            sample,
            encoder,
            batch_tokens=batch_tokens,
            description=f"letter mass of a sample, {name} form",
        )
        if table.letter_mass is not None:
            masses[name] = float(table.letter_mass.mean(dtype="float64"))
    return masses


def resolved_form(
    asked: Literal["plain", "chat", "auto"],
    loaded: LoadedModel,
    questions: Sequence[Question],
    shots: Sequence[Question] = (),
    *,
    batch_tokens: int = 4096,
) -> tuple[Form, dict[str, float]]:
    """The prompt form to use: the one that was asked for, and for `auto` the one that was or is decided.

    An adapter's record says in which form it was trained; that form is kept. Else the form with the most
    letter mass on a sample is taken.

    Args:
        asked: `plain`, `chat` or `auto`.
        loaded: the model.
        questions: see `letter_masses`.
        shots: see `letter_masses`.
        batch_tokens: see `letter_masses`.

    Returns:
        The form, and what was measured for it: nothing unless it had to be.
    """
    if asked != "auto":
        return asked, {}
    for form in FORMS:
        if form == loaded.prompt_form:
            say(f"prompt form: {form}, in which the adapter was made")
            return form, {}
    masses = letter_masses(loaded, questions, shots, batch_tokens=batch_tokens)
    best = max(FORMS, key=lambda name: masses.get(name, -1.0))
    figures = ", ".join(f"{name} {mass:.3f}" for name, mass in masses.items())
    say(f"prompt form: {best} (mean letter mass of {min(SAMPLE, len(questions))} questions: {figures})")
    return best, masses

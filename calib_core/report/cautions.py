"""What is said before a model's figures where these rest on little."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calib_core.predictions.table import Predictions

LEAST_LETTER_MASS = 0.5
"""Mean letter mass below which a model counts as not answering with letters.

Forms in which SmolLM2-135M-Instruct does had 0.84 or more on seven sets of questions, forms in which it
doesn't 0.28 or less (`python benchmarks/letter_mass.py`)."""

FLAT = 0.02
"""Width within which nine in ten confidences of a model lie that is as sure of one question as of another."""

FEWEST = 20
"""Questions below which nothing is said of how confidences differ."""


def cautions(
    table: Predictions, *, model: str = "The model", masses: Mapping[str, float] | None = None
) -> list[str]:
    """Sentences on a letter mass that is low, and on a confidence that is nearly the same everywhere.

    Args:
        table: Predictions of the model.
        model: What the sentences call it.
        masses: Mean letter mass by prompt form, where it was measured on a sample.
    """
    form = str(((table.protocol or {}).get("prompt") or {}).get("form", ""))
    mass = None if table.letter_mass is None or not len(table) else float(table.letter_mass.mean())
    said = [letter_mass_caution(mass, model=model, form=form, masses=masses), _flat(table, model)]
    return [sentence for sentence in said if sentence]


def letter_mass_caution(
    mass: float | None,
    *,
    model: str = "The model",
    form: str = "",
    masses: Mapping[str, float] | None = None,
) -> str:
    """What a low letter mass means, and which prompt form has more; empty where it isn't low, or not known.

    Args:
        mass: Mean letter mass.
        model: What the sentence calls the model.
        form: Prompt form of the figures; "" where it isn't known.
        masses: Mean letter mass by prompt form on a sample.

    >>> letter_mass_caution(0.09, form="plain", masses={"plain": 0.1, "chat": 0.89}).split("; ")[1]
    'the chat form has 0.890 on a sample: use `prompt_form=chat`.'
    """
    if mass is None or mass >= LEAST_LETTER_MASS:
        return ""
    others = {name: value for name, value in (masses or {}).items() if name != form}
    best = max(others, key=lambda name: others[name], default="")
    if best and others[best] > mass:
        advice = f"the {best} form has {others[best]:.3f} on a sample: use `prompt_form={best}`"
    elif best:
        advice = (
            f"the {best} form has no more ({others[best]:.3f} on a sample): give worked examples (`shots`)"
        )
    else:
        advice = (
            "evaluate with `prompt_form=auto`, which takes the form with the most, or give worked examples"
        )
    return (
        f"{model} doesn't answer with letters here: its letter mass is {mass:.3f}, so that its confidence, "
        f"which is about the letters alone, says little of its answers; {advice}."
    )


def _flat(table: Predictions, model: str) -> str:
    if len(table) < FEWEST:
        return ""
    low, high = (float(limit) for limit in np.quantile(table.confidence(), (0.05, 0.95)))
    if high - low > FLAT:
        return ""
    return (
        f"{model}'s confidence carries no information: it is nearly the same for every question (from "
        f"{low:.3f} to {high:.3f} for nine in ten), so that it doesn't tell right answers from wrong ones."
    )

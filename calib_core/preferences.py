"""Preference pairs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """One preference pair: of two answers to a prompt, the one that was preferred.

    Attributes:
        id: Name of the pair, unique within a data set.
        prompt: What the model is given.
        chosen: The preferred continuation, exactly as it follows the prompt (leading space included).
        rejected: The other continuation.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str

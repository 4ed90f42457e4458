"""What the study compares: each method as a step of the library with its settings.

Temperature and vector scaling are no methods of their own: every run is read with and without them
(`readings.py`), at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Orders = Literal["cyclic", "given"]

FIXED = {"adapt_weights": False}
MEMORISING_EPOCHS = 6


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way from the aligned model to another one.

    Attributes:
        step: the training step; "" for none.
        settings: what differs from the defaults of `FinetuneConfig`.
        start: method whose model is trained on; "" for the aligned model.
        passes: how often the step is run, each time on the model of the time before.
        orders: orders of the options that it is run with.
    """

    step: Literal["", "cft", "rcft"] = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    passes: int = 1
    orders: tuple[Orders, ...] = ("cyclic", "given")


# A run keeps its best evaluation, which never is a memoriser's: it is made of runs of one epoch, evaluated
# once, at their end.
_TO_THE_END = {"epochs": 1, "evaluations_per_epoch": 1}
_AUTHORS = {"estimation_fold": "initial", "remainder": "tanh", **FIXED}

METHODS: dict[str, Method] = {
    "untouched": Method(orders=("given",)),
    "SFT": Method(step="cft", settings=FIXED),
    "label smoothing": Method(step="cft", settings={"label_smoothing": 0.1, **FIXED}),
    "CFT": Method(step="cft"),
    "ECE loss alone": Method(
        step="rcft", settings={"lambda_ece": 1000.0, **FIXED}
    ),  # beside 1000 SFT is nothing
    "RCFT": Method(step="rcft"),
    "RCFT, fit": Method(step="rcft", settings={"estimation_fold": "fit"}),
    "RCFT, initial": Method(step="rcft", settings={"estimation_fold": "initial"}),
    "RCFT, tanh": Method(step="rcft", settings={"remainder": "tanh"}),
    "authors": Method(step="rcft", settings=_AUTHORS, orders=("given",)),
    "memorised": Method(
        step="cft", settings={**_TO_THE_END, **FIXED}, passes=MEMORISING_EPOCHS, orders=("given",)
    ),
    "memorised, SFT": Method(step="cft", settings=FIXED, start="memorised"),
    "memorised, RCFT": Method(step="rcft", start="memorised"),
    "memorised, RCFT, fit": Method(step="rcft", settings={"estimation_fold": "fit"}, start="memorised"),
    "memorised, authors": Method(step="rcft", settings=_AUTHORS, start="memorised", orders=("given",)),
}

BRANCHES = {
    "none": ("untouched", "raw"),
    "temperature": ("untouched", "temperature"),
    "cft": ("CFT", "default"),
    "rcft": ("RCFT", "default"),
}
"""Method and reading of each answer that the library may give."""

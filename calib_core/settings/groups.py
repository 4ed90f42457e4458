"""Groups of parameters that several steps share. A config takes them in as base classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calib_core.settings.checks import Config, ConfigCheck
from calib_core.settings.parameters import parameter

REPAIRS = ("temperature", "cft", "rcft")
"""The answers to a model that isn't calibrated."""


@dataclass(frozen=True, kw_only=True)
class Seed(Config):
    """What makes a run repeatable."""

    GROUP = "randomness"

    seed: int = parameter(0, "Seed of everything that is drawn at random.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Loading(Config):
    """How a model is loaded."""

    GROUP = "model"

    dtype: Literal["auto", "float32", "bfloat16"] = parameter(
        "auto", "`auto` (bfloat16 if the hardware supports it), `float32` or `bfloat16`."
    )
    base_model: str = parameter(
        "", "Folder, bucket URI or hub id of the base model, if the one that an adapter names has moved."
    )


@dataclass(frozen=True, kw_only=True)
class PromptStyle(Config):
    """In what form a question is put to a model."""

    GROUP = "prompt"

    prompt_form: Literal["plain", "chat", "auto"] = parameter(
        "plain",
        '`plain` (Question, options, "Answer:"), `chat` (the tokenizer\'s chat template) or `auto` (the form '
        "that the adapter was made in, else the one in which the model puts most probability on letters).",
    )


@dataclass(frozen=True, kw_only=True)
class Prompt(PromptStyle):
    """The prompt: its form, and the worked examples before the question."""

    shots: int = parameter(
        0,
        "Number of worked examples, taken from the fit fold, that stand before each question.",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class Scoring(Config):
    """How many questions a forward pass takes."""

    GROUP = "scoring"

    batch_tokens: int = parameter(4096, "Padded tokens in one forward pass.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Bins(Config):
    """The bins of the figures."""

    GROUP = "figures"

    n_bins: int = parameter(10, "Equal-width confidence bins of every binned figure.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class Measuring(Bins, Seed):
    """How figures and their intervals are made."""

    cluster_by: Literal["group", "subject", "none"] = parameter(
        "group",
        "What questions that depend on each other have in common, for intervals: `group` (the column of that "
        "name), `subject` or `none`.",
    )
    n_resamples: int = parameter(
        1000, "Bootstrap resamples behind the intervals of calibration errors.", at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class Regime(Config):
    """Where one regime ends and the next begins."""

    GROUP = "regime"

    target_ece: float = parameter(
        0.08,
        "Expected calibration error at or below which a model counts as calibrated.",
        above=0,
        below=1,
    )
    tolerance: float = parameter(
        0.05, "Lower bound on the ECE above which a model counts as non-calibratable.", at_least=0, below=1
    )
    critical_accuracy: float | None = parameter(
        None,
        "Accuracy of the target model, if it is known (human agreement, say); otherwise it is estimated.",
        at_least=0,
        at_most=1,
    )


@dataclass(frozen=True, kw_only=True)
class RegimeTest(Regime, Measuring):
    """The regime test with all of its options."""

    repairs: str = parameter(
        ",".join(REPAIRS),
        "Repairs that are allowed: some of `temperature`, `cft` and `rcft`, separated by commas.",
    )
    on_undecided: Literal["branch", "stop"] = parameter(
        "branch",
        "What to do if the interval straddles the target: `branch` (continue, as not shown to be "
        "calibrated) or `stop`.",
    )

    def rules(self, check: ConfigCheck) -> None:
        """Each repair must be known."""
        super().rules(check)
        check.value(
            "repairs",
            lambda repairs: {word.strip() for word in repairs.split(",")} <= set(REPAIRS),
            f"one or more of {', '.join(REPAIRS)}, with commas",
        )


@dataclass(frozen=True, kw_only=True)
class Lora(Config):
    """The adapter that training changes."""

    GROUP = "LoRA"

    lora_r: int = parameter(128, "Rank of the LoRA update (an input adapter keeps its own).", at_least=1)
    lora_alpha: int = parameter(
        64, "LoRA scale: the update is multiplied by lora_alpha / lora_r.", at_least=1
    )
    lora_dropout: float = parameter(0.05, "Dropout on the LoRA input.", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Optimizer(Config):
    """How training steps are taken."""

    GROUP = "optimizer"

    learning_rate: float = parameter(5e-4, "Peak learning rate of AdamW.", above=0)
    warmup_fraction: float = parameter(
        0.1, "Share of the steps in which the learning rate rises; a cosine follows.", at_least=0, below=1
    )
    max_grad_norm: float = parameter(1.0, "Gradient norm above which gradients are scaled down.", above=0)


@dataclass(frozen=True, kw_only=True)
class Rows(Config):
    """What to do with bad rows."""

    GROUP = "reading"

    on_bad_row: Literal["refuse", "drop"] = parameter(
        "refuse", "`refuse` a file with bad rows, or `drop` and count them."
    )


@dataclass(frozen=True, kw_only=True)
class Splitting(Config):
    """How questions are split into folds."""

    GROUP = "folds"

    fit_fraction: float = parameter(
        0.4, "Share of the questions for the fit fold, which is trained on.", above=0, below=1
    )
    calibration_fraction: float = parameter(
        0.3, "Share of the questions for the calibration fold; the rest is for test.", above=0, below=1
    )
    max_fit: int = parameter(0, "Maximum number of questions in the fit fold; 0 for no limit.", at_least=0)
    max_calibration: int = parameter(
        0, "Maximum number of questions in the calibration fold; 0 for no limit.", at_least=0
    )
    max_test: int = parameter(0, "Maximum number of questions in the test fold; 0 for no limit.", at_least=0)

    def rules(self, check: ConfigCheck) -> None:
        """Something must be left for the test fold."""
        super().rules(check)
        check.that(
            lambda c: c.fit_fraction + c.calibration_fraction < 1,
            f"`fit_fraction` {self.fit_fraction} and `calibration_fraction` {self.calibration_fraction} "
            "leave nothing for test; make them smaller",
        )

"""How often the gate may be wrong, and what that asks of the number of test questions.

A gate that is wrong in 2 % of runs is wrong within a year of weekly runs in 65 % of cases. So the error of a
run gets smaller with the number of comparisons before it: the k-th comparison within a year may promote a
model that lies at a margin with a probability of `LEVEL / k`. That is 1 % for a single one, and 4.5 % for 52
together, whatever depends on what. Once the year's comparisons have used up `YEARS_LEVEL`, nothing is
promoted until the oldest of them is more than a year ago.

Source: alpha spending as in Lan & DeMets 1983, here over comparisons of different models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import norm

from calib_core.errors import ConfigError

LEVEL = 0.01
"""How often a run's first comparison may promote a model that lies exactly at a margin."""

YEARS_LEVEL = 0.05
"""The same for all comparisons within 365 days together."""

CRITERION_POWER = 0.9
"""How often a model that did not lose anything is shown to have held its accuracy, where a number of test
questions is called enough: then it passes the gate, which asks for the Brier score too, in 80 % of runs."""

TYPICAL_CHANGED = 0.1
"""Share of answers that fine-tuning changes, for words before a run; a temperature changes none."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What came before a comparison.

    Attributes:
        comparisons: comparisons of the last 365 days, whatever their outcome.
        accuracy_change: how accuracy has changed at least from the first champion to the model before: the
            lower limits of all promotions in between, added up.
    """

    comparisons: int = 0
    accuracy_change: float = 0.0

    def __post_init__(self) -> None:
        if self.comparisons < 0 or not math.isfinite(self.accuracy_change):
            raise ConfigError(
                f"comparisons must be 0 or more and accuracy_change a number, received {self.comparisons} "
                f"and {self.accuracy_change}"
            )

    @property
    def level(self) -> float:
        """How often the comparison that follows may be wrong; 0 where the year's share is used up.

        >>> History().level, History(comparisons=3).level, History(comparisons=100).level
        (0.01, 0.0025, 0.0)
        """
        numbers = range(1, self.comparisons + 2)
        spent = sum(LEVEL / number for number in numbers)
        return LEVEL / (self.comparisons + 1) if spent <= YEARS_LEVEL else 0.0


def required_questions(margin: float, *, changed: float = TYPICAL_CHANGED, level: float = LEVEL) -> int:
    """Test questions with which a model of unchanged accuracy is shown to have held it, in 90 % of runs.

    With as many, and no more than one answer in ten changed, it passes the gate in 80 % of runs or more.

    Args:
        margin: the fall that is accepted, above 0.
        changed: share of questions on which one of the two models is right and the other is wrong.
        level: how often a model at the margin may pass.

    >>> [required_questions(0.01, changed=share) for share in (0.01, 0.1)], required_questions(0.03)
    ([1302, 13017], 1447)
    """
    return math.ceil(changed * (_errors_apart(level) / margin) ** 2)


def supported_margin(n: int, *, changed: float = TYPICAL_CHANGED, level: float = LEVEL) -> float:
    """The smallest margin that `n` test questions support in the same sense."""
    return _errors_apart(level) * math.sqrt(changed / n)


def _errors_apart(level: float) -> float:
    """Standard errors between the margin and no change."""
    return float(norm.isf(level) + norm.ppf(CRITERION_POWER))


def accuracy_note(n: int, *, margin: float, level: float = LEVEL) -> str:
    """What `n` test questions can show of accuracy, in a sentence for before the run.

    >>> accuracy_note(800, margin=0.01)[:72]
    'with 800 test questions the gate can show that accuracy held within 0.01'
    """
    changed = n * (margin / _errors_apart(level)) ** 2
    start = f"with {n:,} test questions the gate can show that accuracy held within {margin:g}"
    if changed >= 2 * TYPICAL_CHANGED:
        return f"{start} though fine-tuning changes {100 * min(changed, 1):.0f} % of the answers"
    margin_here = supported_margin(n, level=level)
    return (
        f"{start} where at most {100 * changed:.1f} % of the answers change; where "
        f"{100 * TYPICAL_CHANGED:.0f} % change and accuracy stays as it is, that takes "
        f"{required_questions(margin, level=level):,} questions or an accuracy_margin of {margin_here:.3f}"
    )

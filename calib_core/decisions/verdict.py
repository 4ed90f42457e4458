"""What the gate found, criterion by criterion, in figures and in sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NotRequired, TypedDict, cast

from calib_core.decisions.budget import LEVEL, required_questions, supported_margin
from calib_core.errors import ConfigError
from calib_core.metrics.interval import Interval, IntervalRecord, json_fields

PROMOTED = "The recalibrated model is promoted."
KEPT = "The recalibrated model isn't promoted; the input model is kept."


class GateRecord(TypedDict):
    """`GateResult` as JSON."""

    promoted: bool
    ece_change: NotRequired[IntervalRecord]
    accuracy_change: NotRequired[IntervalRecord]
    brier_change: NotRequired[IntervalRecord]
    nll_change: NotRequired[IntervalRecord]
    auroc_before: NotRequired[IntervalRecord | None]
    auroc_after: NotRequired[IntervalRecord | None]
    win_rate_change: NotRequired[IntervalRecord | None]
    accuracy_since_first: NotRequired[float]
    level: NotRequired[float]
    comparison: NotRequired[int]
    n: NotRequired[int]
    criteria: NotRequired[dict[str, bool]]
    reasons: NotRequired[list[str]]


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What the gate decided, and why. Intervals have the coverage `1 - 2 level`.

    Attributes:
        promoted: whether the model after takes the place of the model before.
        ece_change: change of conf-ECE, after minus before, with its paired interval.
        accuracy_change: change of accuracy, the same way.
        brier_change: change of the Brier score from the model before after one temperature to the model
            after.
        nll_change: change of the NLL in nats, likewise.
        auroc_before: AUROC of the model before; None where all of its answers are right or all wrong.
        auroc_after: AUROC of the model after, likewise.
        win_rate_change: change of the preference win rate; None where there are no pairs.
        accuracy_since_first: how accuracy will have changed at least since the first champion if the model is
            promoted.
        level: how often a model that lies at a margin passes.
        comparison: number of this comparison within a year, from 1.
        n: test questions.
        criteria: which of the gate's criteria held, by name.
        reasons: plain sentences with the figures in them.
    """

    promoted: bool
    ece_change: Interval
    accuracy_change: Interval
    brier_change: Interval
    nll_change: Interval
    auroc_before: Interval | None
    auroc_after: Interval | None
    win_rate_change: Interval | None
    accuracy_since_first: float
    level: float
    comparison: int
    n: int
    criteria: dict[str, bool]
    reasons: tuple[str, ...]

    def to_dict(self) -> GateRecord:
        """JSON form: the attributes by name."""
        plain = asdict(self, dict_factory=json_fields)
        return cast(GateRecord, plain | {"reasons": list(self.reasons)})


@dataclass(frozen=True, kw_only=True)
class Margins:
    """What is accepted in a model that is promoted.

    Attributes:
        accuracy: fall of accuracy in one comparison, a share of all questions, in [0, 1].
        total_accuracy: fall of accuracy since the first champion, likewise.
        brier: rise of the Brier score above that of the temperature-scaled input model, in [0, 2].
        win_rate: fall of the preference win rate, a share of all pairs, in [0, 1].

    Raises:
        ConfigError: a margin is out of range; all such are named.
    """

    accuracy: float = 0.03
    total_accuracy: float = 0.05
    brier: float = 0.02
    win_rate: float = 0.05

    def __post_init__(self) -> None:
        most = {"accuracy": 1, "total_accuracy": 1, "brier": 2, "win_rate": 1}
        wrong = [
            f"{name}_margin must lie in [0, {top}], received {getattr(self, name)!r}"
            for name, top in most.items()
            if not 0 <= getattr(self, name) <= top
        ]
        if wrong:
            raise ConfigError("; ".join(wrong))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One criterion: its name, whether it holds, and the sentence that says so."""

    name: str
    holds: bool
    sentence: str


def findings(result: GateResult, margins: Margins, *, changed: float, n_pairs: int) -> list[Finding]:
    """All criteria of a comparison.

    Args:
        result: its figures.
        margins: what is accepted.
        changed: share of questions on which one model is right and the other wrong.
        n_pairs: preference pairs, 0 where there are none.
    """
    found = [
        _ece(result),
        _accuracy(result, margins.accuracy, changed),
        _total_accuracy(result, margins.total_accuracy),
        _brier(result, margins.brier),
        _ranking(result),
        _win_rate(result, margins.win_rate, n_pairs),
        _budget(result),
    ]
    return [finding for finding in found if finding is not None]


def _ece(result: GateResult) -> Finding:
    change = result.ece_change
    figures = f"{_signed(change.value)} on {result.n:,} test questions ({_limits(change, result)})"
    ending = "the interval includes zero, so a fall is not shown"
    if change.high < 0:
        ending = "the whole interval lies below zero: it fell"
    elif change.low > 0:
        ending = "the whole interval lies above zero: it rose"
    return Finding(
        name="ece_fell",
        holds=change.high < 0,
        sentence=f"The conf-ECE changed by {figures}: {ending}.",
    )


def _accuracy(result: GateResult, margin: float, changed: float) -> Finding:
    change = result.accuracy_change
    ending = _held_or_not(change, margin)
    if change.low < -margin <= change.high:
        level = result.level or LEVEL
        needed = (
            f"{required_questions(margin, changed=changed, level=level):,} questions or " if margin else ""
        )
        ending += (
            f" (with {100 * changed:.1f} % of the answers changed, showing it takes about {needed}"
            f"a margin of {supported_margin(result.n, changed=changed, level=level):.3f})"
        )
    return Finding(
        name="accuracy_held",
        holds=change.low >= -margin,
        sentence=f"Accuracy changed by {_signed(change.value)} ({_limits(change, result)}): {ending}.",
    )


def _total_accuracy(result: GateResult, margin: float) -> Finding | None:
    """Of interest only where earlier promotions may have cost something."""
    total = result.accuracy_since_first
    if total == result.accuracy_change.low and total >= -margin:
        return None
    held = total >= -margin
    return Finding(
        name="accuracy_held_since_first",
        holds=held,
        sentence=(
            "With what earlier promotions may have cost, accuracy has changed by "
            f"{_signed(total)} at least since the first champion: that is "
            f"{'within' if held else 'more than'} the accepted {margin:.4g}."
        ),
    )


def _brier(result: GateResult, margin: float) -> Finding:
    brier, nll = result.brier_change, result.nll_change
    if brier.high <= margin:
        ending = f"the confidence is as informative, within the accepted {margin:.4g}"
    elif brier.low > margin:
        ending = f"the confidence is less informative, by more than the accepted {margin:.4g}"
    else:
        ending = f"it is not shown that the confidence is as informative, within the accepted {margin:.4g}"
    return Finding(
        name="brier_held",
        holds=brier.high <= margin,
        sentence=(
            "Against the input model with one temperature the Brier score changed by "
            f"{_signed(brier.value)} ({_limits(brier, result)}) and the NLL by {_signed(nll.value)} nats "
            f"({_limits(nll, result)}): {ending}."
        ),
    )


def _ranking(result: GateResult) -> Finding | None:
    before, after = result.auroc_before, result.auroc_after
    if before is None or after is None:
        return None
    figures = f"The AUROC of confidence is {_figure(before)} before and {_figure(after)} after"
    if before.low <= 0.5:
        ending = "the input model's confidence isn't shown to tell right answers from wrong ones"
        return Finding(name="ranking_held", holds=True, sentence=f"{figures}: {ending}.")
    held = after.low > 0.5
    ending = (
        "both tell right answers from wrong ones"
        if held
        else "the output model's confidence is not shown to tell right answers from wrong ones any more"
    )
    return Finding(name="ranking_held", holds=held, sentence=f"{figures}: {ending}.")


def _win_rate(result: GateResult, margin: float, n_pairs: int) -> Finding | None:
    change = result.win_rate_change
    if change is None:
        return None
    return Finding(
        name="win_rate_held",
        holds=change.low >= -margin,
        sentence=(
            f"The preference win rate changed by {_signed(change.value)} on {n_pairs:,} pairs "
            f"({_limits(change, result)}): {_held_or_not(change, margin)}."
        ),
    )


def _budget(result: GateResult) -> Finding | None:
    if result.comparison == 1:
        return None
    sentence = (
        f"This is comparison {result.comparison} within a year, so a model at a margin passes in at most "
        f"{100 * result.level:.2g} % of cases."
        if result.level
        else f"{result.comparison - 1} comparisons within a year have used up their shared error "
        "budget: nothing is promoted until the oldest is more than a year ago."
    )
    return Finding(name="comparisons_left", holds=result.level > 0, sentence=sentence)


def _held_or_not(change: Interval, margin: float) -> str:
    if change.low >= -margin:
        return f"it held, within the accepted {margin:.4g}"
    if change.high < -margin:
        return f"it fell by more than the accepted {margin:.4g}"
    return f"it is not shown to have held within the accepted {margin:.4g}"


def _signed(value: float) -> str:
    return f"{value + 0.0:+.4f}"


def _figure(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _limits(interval: Interval, result: GateResult) -> str:
    confidence = 100 * (1 - 2 * (result.level or LEVEL))
    return f"{confidence:.4g} % interval {_signed(interval.low)} to {_signed(interval.high)}"

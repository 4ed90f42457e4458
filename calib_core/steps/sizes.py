"""What the regime test can decide on folds of given sizes, and which shares would give it enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from calib_core.data.record import DecidableRecord
from calib_core.decisions.bounds import required_examples
from calib_core.settings.groups import Bins, Regime

TESTED = ("fit", "calibration")
"""The folds that the regime test looks at."""

FRACTIONS = tuple((percent / 100, percent / 100) for percent in (35, 40, 45))
"""Equal shares for these two that are tried where the given ones leave one of them too small."""

Sizes = Mapping[str, int]


def smallest_target(n: int, *, n_bins: int) -> float | None:
    """The smallest target, in thousandths, that the regime test can decide on `n` questions in each fold.

    None where no target below 1 can be.

    >>> smallest_target(355, n_bins=10), required_examples(0.08), smallest_target(2, n_bins=10)
    (0.08, 355, None)
    """
    # What is needed falls as 1 / target^2, and is rounded up at one target that is surely in range.
    thousandths = math.ceil(round(80 * math.sqrt(required_examples(0.08, n_bins=n_bins) / n), 9))
    return thousandths / 1000 if thousandths < 1000 else None


def decidable(sizes: Sizes, sizes_with: Callable[[float, float], Sizes] | None) -> DecidableRecord:
    """What the regime test can decide on these folds at its default target, and which shares would do.

    Args:
        sizes: questions by fold.
        sizes_with: the sizes that other shares for fit and calibration would give; None where folds are
            files.

    Returns:
        `target_ece` (the default), `needed` in each fold, `is_enough`, `smallest_target_ece` that can be
        decided, and `fractions`: shares of fit and calibration with the `sizes` that they give, where the
        given ones are not enough and these are; else None.
    """
    target, n_bins = Regime().target_ece, Bins().n_bins
    needed = required_examples(target, n_bins=n_bins)

    def enough(of: Sizes) -> bool:
        return all(of[name] >= needed for name in TESTED)

    better: dict[str, Any] | None = None
    if not enough(sizes) and sizes_with is not None:
        for shares in FRACTIONS:
            if enough(found := sizes_with(*shares)):
                better = {"fit_fraction": shares[0], "calibration_fraction": shares[1], "sizes": dict(found)}
                break
    return {
        "target_ece": target,
        "needed": needed,
        "is_enough": enough(sizes),
        "smallest_target_ece": smallest_target(min(sizes[name] for name in TESTED), n_bins=n_bins),
        "fractions": better,
    }


def decidable_text(sizes: Sizes, found: DecidableRecord) -> str:
    """`decidable` in a sentence."""
    counts = ", ".join(f"{name} {sizes[name]:,}" for name in ("fit", "calibration", "test"))
    needs = f"the regime test needs {found['needed']:,} in each of fit and calibration"
    least = found["smallest_target_ece"]
    if found["is_enough"]:
        return (
            f"questions: {counts}; at the default target_ece of {found['target_ece']:g} {needs}; these are "
            f"enough down to target_ece {least:g}"
        )
    reach = f"these are enough from target_ece {least:g} on" if least else "these are enough for no target"
    text = (
        f"questions: {counts}; too few to name the regime at the default target_ece of "
        f"{found['target_ece']:g}, for which {needs}; {reach}"
    )
    if better := found["fractions"]:
        given = ", ".join(f"{name} {n:,}" for name, n in better["sizes"].items())
        return (
            f"{text}; fit_fraction {better['fit_fraction']:g} and calibration_fraction "
            f"{better['calibration_fraction']:g} would do ({given})"
        )
    return f"{text}; provide more questions, or raise the limits on the folds"

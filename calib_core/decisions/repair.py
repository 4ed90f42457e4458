"""Which answer to a model's miscalibration: none, one temperature, CFT or RCFT.

A temperature costs nothing, changes no answer and is hard to beat where the confidence ranks right answers
above wrong ones. So it comes first where two things are shown on held-out questions, each with a temperature
that was fitted on other ones: that there is a ranking worth keeping (AUROC above 0.5 and a Brier score below
that of a constant confidence, by their lower limits), and that the calibration error is within the target.
Otherwise the regime decides between the two ways of fine-tuning. A model without resolution needs training:
its best temperature only makes all options equally likely.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib_core.decisions.result import Branch, Regime, TemperatureFindings
from calib_core.decisions.temperature import cross_fitted, fit_temperature
from calib_core.errors import ConfigError
from calib_core.metrics.gaps import debiased_ece_interval, fine_ece_interval
from calib_core.metrics.means import Linear, auroc_interval
from calib_core.predictions.table import Predictions
from calib_core.settings.groups import REPAIRS

_BY_REGIME: dict[Regime, tuple[Branch, ...]] = {
    "calibrated": (),
    "calibratable": ("cft", "rcft"),
    "non_calibratable": ("rcft", "cft"),
}
"""Ways of fine-tuning by regime, the better one first."""


def parse_repairs(repairs: str) -> tuple[str, ...]:
    """The allowed answers out of a list with commas.

    Raises:
        ConfigError: a word is none of them, or there is no word.

    >>> parse_repairs("cft, rcft")
    ('cft', 'rcft')
    """
    words = tuple(word.strip() for word in repairs.split(","))
    if unknown := [word for word in words if word not in REPAIRS]:
        raise ConfigError(
            f"repairs is {repairs!r}: {', '.join(map(repr, unknown))} unknown; give one or more of "
            f"{', '.join(REPAIRS)}, separated by commas"
        )
    return words


def measure_temperature(
    heldout: Predictions,
    *,
    n_bins: int = 10,
    clusters: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> TemperatureFindings:
    """What one temperature would make of held-out questions.

    Args:
        heldout: labelled predictions, at least two.
        n_bins: equal-width confidence bins.
        clusters: cluster of each row, (N,); None where rows are independent.
        confidence: coverage of the intervals.
        n_resamples: bootstrap resamples.
        seed: of the resamples.
    """
    scaled = cross_fitted(heldout)
    conf, correct = scaled.confidence(), scaled.correct()
    both_outcomes = correct.min() < correct.max()
    resampling: dict[str, Any] = {
        "clusters": clusters,
        "confidence": confidence,
        "n_resamples": n_resamples,
        "seed": seed,
    }
    return TemperatureFindings(
        value=fit_temperature(heldout),
        ece=debiased_ece_interval(conf, correct, n_bins=n_bins, **resampling),
        fine_ece=fine_ece_interval(conf, correct, **resampling),
        auroc=auroc_interval(conf, correct, clusters=clusters, confidence=confidence)
        if both_outcomes
        else None,
        brier_skill=_brier_skill(conf, correct, clusters).interval(confidence=confidence),
    )


def choose_branch(
    regime: Regime, temperature: TemperatureFindings, *, target_ece: float, allowed: tuple[str, ...]
) -> Branch:
    """The answer to a regime.

    Where fine-tuning isn't allowed, a temperature that brings the error down without reaching the target is
    taken too; `none` where nothing that is allowed can help.

    Args:
        regime: what the regime test found.
        temperature: what a temperature would do.
        target_ece: ECE at or below which a model counts as calibrated.
        allowed: answers that are allowed beside `none`.
    """
    if regime == "calibrated":
        return "none"
    worth_keeping = "temperature" in allowed and temperature.has_resolution
    reaches = temperature.ece.high <= target_ece and temperature.fine_ece.value <= target_ece
    if worth_keeping and reaches:
        return "temperature"
    for branch in _BY_REGIME[regime]:
        if branch in allowed:
            return branch
    return "temperature" if worth_keeping else "none"


def _brier_skill(
    conf: NDArray[np.float64], correct: NDArray[np.float64], clusters: NDArray[np.int64] | None
) -> Linear:
    """1 less the ratio of the confidence's squared error to that of the share of right answers."""
    own, constant = (conf - correct) ** 2, (correct.mean() - correct) ** 2
    if constant.max() == 0:  # every answer is right, or wrong: nothing to tell apart
        return Linear(0.0, np.zeros_like(conf), clusters)
    skill = 1 - float(own.mean() / constant.mean())
    return Linear(skill, ((1 - skill) * constant - own) / constant.mean(), clusters)

"""Measure and restore the calibration of preference-aligned language models.

The method is that of Xiao et al. 2025, *Restoring Calibration for Aligned Large Language Models: A
Calibration-Aware Fine-Tuning Approach* (ICML 2025, arXiv 2505.01997).

The names in `__all__` are the public face: what is needed to measure and compare predictions from anywhere,
without a model. Each is loaded when it is first used, so that importing this package costs nothing.

Example:
    >>> from calib_core import Predictions, fit_temperature, measure
    >>> predictions = Predictions.from_probs([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]] * 50, [0, 1, 1] * 50)
    >>> print(measure(predictions).conf_ece)
    0.333 (0.260 to 0.397)
    >>> round(fit_temperature(predictions), 2)
    4.09
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from calib_core.version import __version__

if TYPE_CHECKING:
    from calib_core.decisions.bounds import regime_test
    from calib_core.decisions.compare import compare
    from calib_core.decisions.gate import decide
    from calib_core.decisions.temperature import fit_temperature
    from calib_core.errors import CalibError
    from calib_core.metrics.figures import (
        adaptive_ece,
        brier,
        classwise_ece,
        conf_ece,
        debiased_ece,
        nll_nats,
        smooth_ece,
    )
    from calib_core.metrics.interval import Interval
    from calib_core.metrics.selective import auroc, risk_coverage
    from calib_core.metrics.summary import Figures, measure
    from calib_core.predictions.files import read_predictions, write_predictions
    from calib_core.predictions.table import Predictions
    from calib_core.predictions.temperature import apply_temperature
    from calib_core.report.tables import write_report

__all__ = [
    "CalibError",
    "Figures",
    "Interval",
    "Predictions",
    "__version__",
    "adaptive_ece",
    "apply_temperature",
    "auroc",
    "brier",
    "classwise_ece",
    "compare",
    "conf_ece",
    "debiased_ece",
    "decide",
    "fit_temperature",
    "measure",
    "nll_nats",
    "read_predictions",
    "regime_test",
    "risk_coverage",
    "smooth_ece",
    "write_predictions",
    "write_report",
]

_HOMES = {
    "decisions.bounds": ("regime_test",),
    "decisions.compare": ("compare",),
    "decisions.gate": ("decide",),
    "decisions.temperature": ("fit_temperature",),
    "predictions.temperature": ("apply_temperature",),
    "errors": ("CalibError",),
    "metrics.interval": ("Interval",),
    "metrics.figures": (
        *("adaptive_ece", "brier", "classwise_ece", "conf_ece", "debiased_ece", "nll_nats", "smooth_ece"),
    ),
    "metrics.selective": ("auroc", "risk_coverage"),
    "metrics.summary": ("Figures", "measure"),
    "predictions.files": ("read_predictions", "write_predictions"),
    "predictions.table": ("Predictions",),
    "report.tables": ("write_report",),
}
"""Where the public names are defined, as they are imported above for type checkers."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"calib_core.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'calib_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

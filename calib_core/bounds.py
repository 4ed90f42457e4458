"""Public name of `calib_core.decisions.bounds`, and of the result of its test."""

from calib_core.decisions.bounds import (
    UpperBounds,
    regime_test,
    required_examples,
    target_calibration_error,
    upper_bounds,
)
from calib_core.decisions.result import RegimeResult

__all__ = [
    "RegimeResult",
    "UpperBounds",
    "regime_test",
    "required_examples",
    "target_calibration_error",
    "upper_bounds",
]

"""Public name of `calib_core.decisions.bounds`."""

from calib_core.decisions.bounds import (
    RegimeResult,
    UpperBounds,
    regime_test,
    required_examples,
    target_calibration_error,
    upper_bounds,
)

__all__ = [
    "RegimeResult",
    "UpperBounds",
    "regime_test",
    "required_examples",
    "target_calibration_error",
    "upper_bounds",
]

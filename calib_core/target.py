"""Public name of `calib_core.decisions.target`."""

from calib_core.decisions.target import (
    ConfidenceTargets,
    em_target,
    estimate_bin_targets,
    rank_preserving_target,
)

__all__ = ["ConfidenceTargets", "em_target", "estimate_bin_targets", "rank_preserving_target"]

"""Public name of `calib_core.decisions.target`."""

from calib_core.decisions.target import (
    BinTargets,
    em_target,
    estimate_bin_targets,
    rank_preserving_target,
)

__all__ = ["BinTargets", "em_target", "estimate_bin_targets", "rank_preserving_target"]

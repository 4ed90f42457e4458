"""Calibration and selective-prediction figures, with intervals. numpy in float64; never imports torch."""

from calib_core.metrics.figures import (
    ReliabilityBin,
    adaptive_ece,
    brier,
    classwise_ece,
    conf_ece,
    debiased_ece,
    mce,
    nll_nats,
    per_subject,
    reliability_bins,
    smooth_ece,
)
from calib_core.metrics.interval import Interval
from calib_core.metrics.selective import (
    OperatingPoint,
    RiskCoverage,
    auroc,
    risk_coverage,
    threshold_at_risk,
)
from calib_core.metrics.summary import Figures, measure

__all__ = [
    "Figures",
    "Interval",
    "OperatingPoint",
    "ReliabilityBin",
    "RiskCoverage",
    "adaptive_ece",
    "auroc",
    "brier",
    "classwise_ece",
    "conf_ece",
    "debiased_ece",
    "mce",
    "measure",
    "nll_nats",
    "per_subject",
    "reliability_bins",
    "risk_coverage",
    "smooth_ece",
    "threshold_at_risk",
]

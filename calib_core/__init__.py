"""Measure and restore the calibration of preference-aligned language models.

The method is that of Xiao et al. 2025, *Restoring Calibration for Aligned Large Language Models: A
Calibration-Aware Fine-Tuning Approach* (ICML 2025, arXiv 2505.01997).

Data flows one way through the modules: `questions` and `folds` (files), `prompts` (tokens), `scoring`
(torch), `predictions` (a table of option logits), `metrics`, `bounds`, `target` and `gate` (numpy alone),
`losses` and `training` (torch), `report` (HTML). `steps` holds the work of one pipeline component per module.
"""

from calib_core.version import __version__

__all__ = ["__version__"]

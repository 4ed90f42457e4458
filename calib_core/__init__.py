"""Measure and restore the calibration of preference-aligned language models.

The method is that of Xiao et al. 2025, *Restoring Calibration for Aligned Large Language Models: A
Calibration-Aware Fine-Tuning Approach* (ICML 2025, arXiv 2505.01997).

Data flows one way through the modules: `questions` and `folds` (files), `prompts` (tokens), `scoring`
(torch), `predictions` (a table of option logits), `metrics`, `bounds`, `target` and `gate` (numpy alone),
`losses` and `training` (torch), `report` (HTML). `steps` holds the work of one pipeline component per module.
"""

import logging

from calib_core.version import __version__

# PEFT imports bitsandbytes where it is installed. On some CPUs that warns at every start of a missing package
# with which it would fetch machine code from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["__version__"]

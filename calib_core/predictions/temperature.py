"""Predictions at another temperature: logits divided by one number."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from calib_core.errors import ConfigError
from calib_core.predictions.table import Predictions


def apply_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The predictions with their logits divided by `temperature`; the top options stay as they are.

    Args:
        predictions: any table.
        temperature: above 0; 1 changes nothing, more makes less sure.

    Raises:
        ConfigError: `temperature` isn't a positive finite number.

    Example:
        >>> apply_temperature(Predictions.from_probs([[0.9, 0.1]]), 2).confidence().round(6).tolist()
        [0.75]
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"temperature must be a positive number, received {temperature!r}")
    with np.errstate(over="ignore"):
        scaled = predictions.logits / np.float32(temperature)
    top = predictions.top()
    own = np.arange(scaled.shape[1]) < predictions.n_options[:, None]
    beyond = np.flatnonzero((own & ~np.isfinite(scaled)).any(axis=1))
    if beyond.size:  # what a mask is made of, divided by less than 1: only the distance to the top counts
        logits = predictions.logits[beyond].astype(np.float64)
        distances = (logits - logits.max(axis=1, keepdims=True)) / temperature
        scaled[beyond] = np.where(own[beyond], np.maximum(distances, np.finfo(np.float32).min), -np.inf)
    # Rounding may make two logits equal that weren't: the top option must stay ahead.
    merged = np.flatnonzero(scaled.argmax(axis=1) != top)
    scaled[merged, top[merged]] = np.nextafter(scaled[merged].max(axis=1), np.float32(np.inf))
    return replace(predictions, logits=scaled)

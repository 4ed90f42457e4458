"""Pipelines that choose how to restore a model's calibration by measured bounds, and the `calib` command."""

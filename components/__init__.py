"""Kubeflow Pipelines components of the calibration pipeline."""

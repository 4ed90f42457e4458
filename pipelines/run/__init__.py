"""Pipelines on this machine, and the demonstration."""

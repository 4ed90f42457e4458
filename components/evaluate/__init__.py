"""Measurement, and the regime that it shows."""

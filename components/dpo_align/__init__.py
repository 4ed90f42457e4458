"""Alignment by DPO."""

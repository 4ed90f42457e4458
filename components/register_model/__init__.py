"""Entries in model registries."""

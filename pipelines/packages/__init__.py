"""Compiled packages: what they take, and whether a backend can run them."""

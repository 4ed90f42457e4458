"""Pipelines that are not ours in shape, with our components in them."""

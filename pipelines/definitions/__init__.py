"""The pipelines, on no platform in particular."""

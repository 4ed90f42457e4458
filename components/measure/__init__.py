"""Component `measure`."""

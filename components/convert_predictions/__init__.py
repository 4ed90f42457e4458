"""Component `convert_predictions`."""

"""Component `merge_predictions`."""

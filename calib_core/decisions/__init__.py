"""What follows from the figures: regime, bounds, EM targets, temperature, gate. numpy alone."""

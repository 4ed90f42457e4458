"""The command `calib`, with everything that needs KFP."""

"""The command `calib`, as far as it needs no KFP."""

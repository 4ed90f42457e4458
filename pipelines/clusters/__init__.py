"""The platforms' services: runs, schedules, model registries."""

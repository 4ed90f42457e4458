"""The platforms' services: runs and schedules."""

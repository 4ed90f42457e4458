"""The processes that a job runs as, and what they say while they run."""

"""Component `shard_questions`."""

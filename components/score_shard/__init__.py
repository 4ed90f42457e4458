"""Component `score_shard`."""

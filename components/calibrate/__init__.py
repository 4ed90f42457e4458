"""The whole decision in one container."""

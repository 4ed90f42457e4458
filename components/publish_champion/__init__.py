"""A run made the state of the champion's folder."""

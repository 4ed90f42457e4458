"""The model in use, and the history of its figures."""

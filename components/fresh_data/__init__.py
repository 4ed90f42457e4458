"""What is new in a stream, in folds."""

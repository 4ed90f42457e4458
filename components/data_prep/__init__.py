"""Questions and preference pairs in, folds out."""

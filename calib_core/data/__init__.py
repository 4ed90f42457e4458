"""Questions and preference pairs: reading, checking, splitting into folds."""

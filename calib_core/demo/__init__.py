"""The demonstration's questions and preference pairs, made from geographical facts."""

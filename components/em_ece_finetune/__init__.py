"""Fine-tuning in the non-calibratable regime."""

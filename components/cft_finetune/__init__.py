"""Fine-tuning in the calibratable regime."""

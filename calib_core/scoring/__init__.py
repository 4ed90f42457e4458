"""From questions to option logits: prompts, forward passes, one record per question."""

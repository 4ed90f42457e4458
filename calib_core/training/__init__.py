"""LoRA fine-tuning (CFT, RCFT) and DPO: losses, loop, stopping, checkpoints."""

"""What ``torch.save`` and torch's distributed checkpoints write, read in place and without torch."""

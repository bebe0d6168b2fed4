"""What is done with checkpoints: plan, convert, reshard, compare."""

"""What is told of checkpoints without changing them: inspect, verify, and what is supported."""

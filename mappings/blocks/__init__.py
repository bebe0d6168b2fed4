"""What an architecture is made of: stacks, the roles of their tensors, and blocks that give rules."""

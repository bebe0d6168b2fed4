"""The ground: boxes of tensors, how they are cut and typed, where their bytes lie."""

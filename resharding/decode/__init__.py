"""Tensors that are stored encoded, as if they were stored in full: decoded while they are read."""

"""Tensors that torch_dist stores stacked, by the names of one layer."""

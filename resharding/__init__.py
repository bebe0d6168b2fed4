"""The engine: boxes of tensors, parallel layouts, plans of byte moves and their execution."""

"""Architectures, one file a model_type, named by it: whatever lies here is supported."""

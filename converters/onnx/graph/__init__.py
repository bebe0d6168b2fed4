"""ONNX graphs built from a model config and the places of the weights; no weight is read."""

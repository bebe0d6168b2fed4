"""ONNX graphs of decoders, built from a model config and the places of the weights; no weight is read."""

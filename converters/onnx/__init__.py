"""ONNX as a format: graphs over safetensors, written and read."""

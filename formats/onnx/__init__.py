"""ONNX files: the graph as plain data, no weight read."""

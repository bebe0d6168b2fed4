"""Which tensor of a model each weight of an ONNX graph is, proved from the graph."""

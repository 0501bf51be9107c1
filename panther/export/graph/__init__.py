"""From a traced torch module to an ONNX graph."""

"""Graphs: a traced torch module as an ONNX graph."""

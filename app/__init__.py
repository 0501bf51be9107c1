"""The server: model files in, an HTTP API out. Never imports panther, torch or onnx."""

__version__ = "0.1.0"

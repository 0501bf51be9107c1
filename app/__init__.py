"""The server: model files in, an HTTP API out. Never imports panther, torch or onnx."""

import os

__version__ = "0.1.0"

# onnxruntime reads this once, when it is imported, which several modules do. Set whatever the environment says: the
# server opens no connection.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

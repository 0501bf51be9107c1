"""The inference server: serves model files over HTTP and gRPC. Never imports panther, torch or onnx."""

import os

__version__ = "0.1.0"

# onnxruntime reads this variable once, at import, and several modules import it. Override the environment: the
# server opens no outgoing connection.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

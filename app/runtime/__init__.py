"""onnxruntime: model files, devices, tensors, and the model card."""

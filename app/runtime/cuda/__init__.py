"""CUDA execution: device buffers and one CUDA graph per batch size."""

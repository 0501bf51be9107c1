"""CUDA execution: device buffers and one CUDA graph for each batch size."""

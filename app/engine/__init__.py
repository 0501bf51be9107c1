"""Inference engine: queue, dynamic batching, results, and wire formats."""

"""Inference requests between HTTP and the engine: decoding, admission control, API keys."""

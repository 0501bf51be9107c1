"""Helpers of the tests: models, servers, raw HTTP, and CUDA played on the host."""

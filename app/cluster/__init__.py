"""Shared state of the workers of one server: the log of control commands, and statistics."""

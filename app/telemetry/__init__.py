"""Counters, traces, and logs."""

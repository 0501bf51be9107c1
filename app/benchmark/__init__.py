"""Latency of a served model compared with its dense twin."""

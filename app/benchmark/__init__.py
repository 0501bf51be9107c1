"""Latency of a served model beside its dense twin."""

"""Contents of /stats and /metrics."""

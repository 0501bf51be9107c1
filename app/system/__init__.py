"""Memory, CPUs, and process tuning on Linux."""

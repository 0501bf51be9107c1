"""Model repository: versions, loading, reloading, and the folder watch."""

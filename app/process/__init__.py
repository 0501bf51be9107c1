"""Server processes: bind, accept connections, serve, supervise workers, shut down gracefully."""

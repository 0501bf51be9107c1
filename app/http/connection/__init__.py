"""One HTTP connection: protocol, body reader, limits, buffers."""

"""HTTP: connections, middleware, routes, and the OpenAPI schema."""

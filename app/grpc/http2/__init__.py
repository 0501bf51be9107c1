"""gRPC over nghttp2 inside the event loop, by the package ``ngh2``.

See docs/decisions/0094-grpc-on-nghttp2.md.
"""

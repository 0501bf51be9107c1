"""The Open Inference Protocol over gRPC, with the same service and engine as HTTP.

See docs/decisions/0074-grpc-by-grpc-aio.md.
See docs/decisions/0094-grpc-on-nghttp2.md.
"""

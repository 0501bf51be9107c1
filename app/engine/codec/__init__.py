"""Encoding and decoding of tensors: strict, and fast for common requests."""

from typing import Literal

# Types of a request body: long ones are received directly into a bytearray, those of binary tensors on CUDA into
# pinned memory, from which the device copies.
Body = bytes | bytearray | memoryview
Headers = dict[bytes, bytes]
HeaderList = list[tuple[bytes, bytes]]
Api = Literal["plain", "oip", "v1"]
"""API of a request: the plain API, the Open Inference Protocol v2, or KServe v1."""

"""Tensors to and from the wire: strict, and quick on the common path."""

from typing import Literal

# What a request body comes as: long ones are received straight into a bytearray, those of binary tensors on CUDA into
# memory that the device copies from.
Body = bytes | bytearray | memoryview
Headers = dict[bytes, bytes]
HeaderList = list[tuple[bytes, bytes]]
Api = Literal["plain", "oip", "v1"]
"""How a request is written: the plain API, the Open Inference Protocol v2, or KServe v1."""

"""Tensors to and from the wire: strict, and quick on the common path."""

# What a request body comes as: long ones are received straight into a bytearray, those of binary tensors on CUDA into
# memory that the device copies from.
Body = bytes | bytearray | memoryview
Headers = dict[bytes, bytes]
HeaderList = list[tuple[bytes, bytes]]

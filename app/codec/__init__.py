"""Tensors to and from the wire: strict, and quick on the common path."""

# What a request body comes as: long ones are received straight into a bytearray.
Body = bytes | bytearray
Headers = dict[bytes, bytes]
HeaderList = list[tuple[bytes, bytes]]

"""Tensors to and from the wire: strict, and quick on the common path."""

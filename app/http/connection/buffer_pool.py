"""Buffers for long request bodies, used again while they are still warm."""

_KEPT_BYTES = 16 * 1024 * 1024
_LARGEST = 4 * 1024 * 1024


class BodyBuffers:
    """Keeps buffers that were given back, by length: clients tend to send bodies of one size.

    A new buffer has to be cleared and lies outside the processor's cache; for a body of half a megabyte that costs as
    much as receiving it.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = {}
        self._kept_bytes = 0

    def take(self, length: int) -> bytearray | None:
        """A buffer of exactly that length, which holds anything; None where there is none."""
        free = self._free.get(length)
        if not free:
            return None
        self._kept_bytes -= length
        return free.pop()

    def give_back(self, buffer: bytearray) -> None:
        """The buffer is no longer read."""
        length = len(buffer)
        if length > _LARGEST:
            return
        if self._kept_bytes + length > _KEPT_BYTES:
            # Sizes have changed: begin again rather than keep unused sizes.
            self._free.clear()
            self._kept_bytes = 0
        self._kept_bytes += length
        self._free.setdefault(length, []).append(buffer)

"""Buffers for long request bodies, reused while they are in the processor's cache."""

_KEPT_BYTES = 16 * 1024 * 1024
_LARGEST = 4 * 1024 * 1024


class BodyBuffers:
    """Keeps returned buffers by length: clients tend to send bodies of one size.

    A new buffer has to be zeroed and is not in the processor's cache; for a body of half a megabyte that costs as
    much as receiving it.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[bytearray]] = {}
        self._kept_bytes = 0

    def first(self, length: int) -> bytearray | None:
        """The buffer that ``take`` would return next; it stays in the pool."""
        free = self._free.get(length)
        return free[-1] if free else None

    def take(self, length: int) -> bytearray | None:
        """A buffer of exactly that length with undefined contents; None if there is none."""
        free = self._free.get(length)
        if not free:
            return None
        self._kept_bytes -= length
        return free.pop()

    def give_back(self, buffer: bytearray) -> None:
        """Return a buffer that is no longer read."""
        length = len(buffer)
        if length > _LARGEST:
            return
        if self._kept_bytes + length > _KEPT_BYTES:
            # Sizes have changed: empty the pool rather than keep unused sizes.
            self._free.clear()
            self._kept_bytes = 0
        self._kept_bytes += length
        self._free.setdefault(length, []).append(buffer)

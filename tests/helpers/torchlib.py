"""torch.onnx's operator translation table, built once per process instead of once per export.

torch.onnx reads the source of 500 functions for it each time, about half of the duration of a small model's export.
"""

import copy
import functools

from torch.onnx._internal.exporter import _registration


def reuse() -> None:
    """Make each later export use a copy of the first one's table, for the same opset."""
    Registry = _registration.ONNXRegistry
    build = Registry.from_torchlib
    if hasattr(build, "cache_info"):
        return

    @functools.cache
    def built(*arguments, **options):
        return build(*arguments, **options)

    @functools.wraps(built)
    def from_torchlib(*arguments, **options):
        table = copy.copy(built(*arguments, **options))
        table.functions = {target: list(found) for target, found in table.functions.items()}
        return table

    from_torchlib.cache_info = built.cache_info
    Registry.from_torchlib = staticmethod(from_torchlib)

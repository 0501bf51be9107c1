"""The table by which torch.onnx translates operators, built once in a process instead of at each export.

torch.onnx reads the source of 500 functions for it each time: about half of what the export of a small model takes.
"""

import copy
import functools

from torch.onnx._internal.exporter import _registration


def reuse() -> None:
    """From here on each export gets a copy of the first one's table, of the same opset."""
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

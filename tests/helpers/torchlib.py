"""What torch gathers for each export, gathered once per process: half of the duration of a small model's export.

That is torch.onnx's operator translation table, for which it reads the source of 500 functions, and the composite
operators, for which torch.export looks up each operator of each library and then sets ten thousand kernels.
"""

import copy
import functools

import torch
from torch._export import utils
from torch.export import decomp_utils, exported_program
from torch.onnx._internal.exporter import _registration


def reuse() -> None:
    """Make each later export use what the first one gathered."""
    _reuse_table()
    _reuse_composite_operators()
    _set_kernels_without_annotations()


def _reuse_table() -> None:
    """Use a copy of the first export's table, for the same opset."""
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


def _registered() -> tuple[list[str], list[int]]:
    """What changes when an operator is registered: the composite ones by name, and the size of each library."""
    composite = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    libraries = (getattr(torch.ops, name) for name in torch.ops._dir if name != "aten")
    return composite, [len(library._dir) for library in libraries if isinstance(library, torch._ops._OpNamespace)]


def _reuse_composite_operators() -> None:
    """Gather them again only when operators were registered; torch says that nobody may modify the set."""
    collect = utils._collect_all_valid_cia_ops
    if hasattr(collect, "__wrapped__"):
        return
    found: list = [None, None]

    @functools.wraps(collect)
    def collected():
        if found[0] is None or found[0] != _registered():
            found[1] = collect()
            found[0] = _registered()
        return found[1]

    for module in (utils, decomp_utils, exported_program):
        module._collect_all_valid_cia_ops = collected


def _set_kernels_without_annotations() -> None:
    """Set kernels of the Python dispatcher without annotations, whose evaluation takes most of that time."""
    Operator, Key = torch._ops.OperatorBase, torch._C.DispatchKey
    original = Operator.py_impl
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def py_impl(self, k):
        if type(k) is not Key or k == Key.Python or k in self.py_kernels:
            return original(self, k)

        def inner(fn):
            self.py_kernels[k] = fn
            self._dispatch_cache.clear()
            return fn

        return inner

    Operator.py_impl = py_impl

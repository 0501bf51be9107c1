"""Fast paths of the sketched layer, behind one function: packed factors, Triton kernels, torch.compile.

Each computes `panther.nn.functional.two_products`; benchmarks/bench_layer.py and benchmarks/gpu time them.
"""

from panther.nn.kernels.dispatch import kernel_of, sketched_linear
from panther.nn.kernels.private_names import compile_callees_only
from panther.nn.kernels.storage import PackedStorage

__all__ = ["PackedStorage", "compile_callees_only", "kernel_of", "sketched_linear"]

"""Fast paths of the sketched layer, behind one function: packed factors, Triton kernels, torch.compile.

Each computes `panther.nn.functional.two_products`; benchmarks/bench_layer.py and benchmarks/gpu time them. `storage`
keeps the terms of a layer packed, and `dispatch` chooses for each call between `packed`, `compiled`, `apart` and the
formula. On CUDA devices, `packed` and `apart` call `cuda`, where `tiles` chooses between `products` and `launch`.
"""

from panther.nn.kernels.dispatch import kernel_of, sketched_linear
from panther.nn.kernels.private_names import compile_callees_only
from panther.nn.kernels.storage import PackedStorage

__all__ = ["PackedStorage", "compile_callees_only", "kernel_of", "sketched_linear"]

"""What must not be in the served image, and what must work in it, as the user that serves. The build runs it.

usage: python check cpu|gpu
"""

import ctypes
import importlib.metadata
import importlib.util
import locale
import pathlib
import shutil
import sys

MODULES = ("torch", "onnx", "panther", "pip", "setuptools", "ensurepip")
PROGRAMS = ("pip", "pip3", "apt-get", "cc", "gcc", "c++", "ld", "make", "perl")


def main(device: str) -> None:
    """Ends with the reason where something is wrong."""
    found = [name for name in MODULES if importlib.util.find_spec(name)]
    found += [name for name in PROGRAMS if shutil.which(name)]
    if found:
        sys.exit(f"in the image, and must not be: {', '.join(found)}")
    import onnxruntime

    import app.application  # that it can be imported is the test
    import app.grpc.http2.transport
    import app.grpc.server  # noqa: F401

    require_locale("C.UTF-8")
    provider = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        sys.exit(f"onnxruntime {onnxruntime.__version__} has no {provider}")
    packages = {found.name for found in importlib.metadata.distributions() if found.name.startswith("nvidia-")}
    if bool(packages) != (device == "gpu"):
        sys.exit(f"NVIDIA's packages in the image for {device}: {sorted(packages)}")
    if device == "gpu":
        load_cuda(pathlib.Path(onnxruntime.__file__).parent)
    static = list(pathlib.Path("/opt/venv/lib").glob("*/site-packages/**/*.a"))
    if static:
        sys.exit(f"static libraries are in the image: {static}")


def require_locale(name: str) -> None:
    """A locale is there; models of texts run in C.UTF-8 where theirs is not installed (app/runtime/rewriting.py)."""
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        sys.exit(f"the locale {name} is not in the image; models of texts need it")


def load_cuda(onnxruntime: pathlib.Path) -> None:
    """Every library of NVIDIA's loads, and the CUDA provider lacks nothing but the driver's, which the host brings."""
    for path in sorted((onnxruntime.parent / "nvidia").glob("*/lib/*.so*")):
        ctypes.CDLL(str(path))
    try:
        ctypes.CDLL(str(onnxruntime / "capi/libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(onnxruntime / "capi/libonnxruntime_providers_cuda.so"))
    except OSError as error:
        if "libcuda.so.1" not in str(error):
            sys.exit(f"the CUDA provider can't be loaded: {error}")


if __name__ == "__main__":
    main(sys.argv[1])

"""What must not be in the served image, and what must work in it, as the user that serves. The build runs it.

usage: python check cpu|gpu
"""

import importlib.metadata
import importlib.util
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

    import app.main  # noqa: F401  that it can be imported is the test

    provider = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        sys.exit(f"onnxruntime {onnxruntime.__version__} has no {provider}")
    packages = {found.name for found in importlib.metadata.distributions() if found.name.startswith("nvidia-")}
    if bool(packages) != (device == "gpu"):
        sys.exit(f"NVIDIA's packages in the image for {device}: {sorted(packages)}")
    static = list(pathlib.Path("/opt/venv/lib").glob("*/site-packages/**/*.a"))
    if static:
        sys.exit(f"static libraries are in the image: {static}")


if __name__ == "__main__":
    main(sys.argv[1])

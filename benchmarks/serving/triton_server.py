"""Triton from NVIDIA's wheel `nvidia-pytriton`. Run by the interpreter of its own environment.

The wheel holds tritonserver with its Python backend and no other; `triton/digits/1/model.py` runs onnxruntime in it.
TRITON_INSTANCES, TRITON_QUEUE_DELAY_US and TRITON_HTTP_THREADS tune it; without them one instance, no delay and one
HTTP thread, which suit one core.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent / "triton"


def main(http_port, grpc_port, repository):
    package = Path(importlib.util.find_spec("pytriton").origin).parent / "tritonserver"
    shutil.copytree(HERE, repository, dirs_exist_ok=True)
    config = repository / "digits" / "config.pbtxt"
    text = config.read_text().replace("INSTANCES", os.environ.get("TRITON_INSTANCES", "1"))
    config.write_text(text.replace("QUEUE_DELAY_US", os.environ.get("TRITON_QUEUE_DELAY_US", "0")))
    backends = repository.parent / f"{repository.name}-backends"
    shutil.copytree(package / "backends", backends, dirs_exist_ok=True)
    stub = "triton_python_backend_stub"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(package / "python_backend_stubs" / version / stub, backends / "python" / stub)
    # The stub finds libpython by the first, this environment's packages by the second, as pytriton starts it.
    libraries = (sysconfig.get_config_var("LIBDIR"), str(package.parents[1] / "nvidia_pytriton.libs"))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    server = str(package / "bin" / "tritonserver")
    options = {
        "model-repository": repository,
        "backend-directory": backends,
        "http-address": "127.0.0.1",
        "http-port": http_port,
        "http-thread-count": os.environ.get("TRITON_HTTP_THREADS", "1"),
        "grpc-address": "127.0.0.1",
        "grpc-port": grpc_port,
        "allow-metrics": "false",
        "log-info": "false",
    }
    os.execve(server, [server, *(f"--{name}={value}" for name, value in options.items())], environment)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

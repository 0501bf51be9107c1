"""The library of onnxruntime-extensions, loaded without what its package does to processes that are started later."""

import pytest


def operator_library() -> str:
    """Path of the library; skips the test if the package is not installed.

    The import selects protobuf's Python implementation in the environment; leaving the block restores the variable.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb")
        return pytest.importorskip("onnxruntime_extensions").get_library_path()

"""Weights that an ONNX file keeps in files beside it, read into memory.

Left to itself onnxruntime maps such a file, and a file that is shortened while it is mapped ends the process (SIGBUS)
as soon as a run reaches what is gone. Source: onnx.proto3, ``TensorProto.external_data``.
"""

from pathlib import Path

from app import wire

_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2


def external_files(path: Path) -> dict[str, bytes]:
    """What the files of weights hold that a model names, by the name that it gives them."""
    return {name: file.read_bytes() for name, file in external_paths(path).items()}


def external_paths(path: Path) -> dict[str, Path]:
    """The files of weights that a model names, by the name that it gives them.

    A name that leads out of the model's folder is left out: onnxruntime refuses the model for it. So does it where a
    file is missing, or the model is none.
    """
    folder = path.parent.resolve()
    if not any(item != path and item.is_file() for item in path.parent.rglob("*")):
        return {}
    try:
        names = _locations(path.read_bytes())
    except (ValueError, OSError):
        return {}
    found = {}
    for name in sorted(names):
        file = path.parent / name
        if not Path(name).is_absolute() and file.is_file() and file.resolve().is_relative_to(folder):
            found[name] = file
    return found


def _locations(model: bytes) -> set[str]:
    names: set[str] = set()
    for graph in wire.submessages(wire.parse(model), _GRAPH):
        for tensor in wire.submessages(graph, _INITIALIZER):
            for entry in wire.submessages(tensor, _EXTERNAL_DATA):
                if wire.texts(entry, _KEY) == ["location"]:
                    names.update(wire.texts(entry, _VALUE))
    return {name for name in names if name and "\0" not in name}

"""Weights that an ONNX file keeps in files beside it, read into memory.

Left to itself onnxruntime maps such a file, and a file that is shortened while it is mapped ends the process (SIGBUS)
as soon as a run reaches what is gone. Source: onnx.proto3, ``TensorProto.external_data``.
"""

from pathlib import Path

from app.errors import shortened
from app.runtime import protobuf
from app.system.files import read_regular, require_regular

_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2


def external_files(path: Path) -> dict[str, bytes]:
    """Contents of the external data files of a model, by the names in the model.

    Raises:
        ValueError: see ``external_paths``; or a file can't be read, or grows meanwhile.
    """
    found = {}
    for name, file in external_paths(path).items():
        try:
            found[name] = read_regular(file)
        except OSError as error:
            raise ValueError(_refusal(name, error)) from None
    return found


def external_paths(path: Path) -> dict[str, Path]:
    """The files of weights that a model names, by the name that it gives them.

    A name that leads out of the model's folder is left out: onnxruntime refuses the model for it. So does it where a
    file is missing, or the model is none.

    Raises:
        ValueError: a name is that of a FIFO, a device or the like, which onnxruntime would open and wait for.
    """
    folder = path.parent.resolve()
    if not any(item != path for item in path.parent.iterdir()):
        return {}
    try:
        names = _locations(read_regular(path))
    except (ValueError, OSError):
        return {}
    found = {}
    for name in sorted(names):
        file = path.parent / name
        if Path(name).is_absolute() or not file.resolve().is_relative_to(folder):
            continue
        try:
            require_regular(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ValueError(_refusal(name, error)) from None
        found[name] = file
    return found


def _refusal(name: str, error: OSError) -> str:
    return f"the file of weights {shortened(name)!r} can't be read: {error.strerror}"


def _locations(model: bytes) -> set[str]:
    names: set[str] = set()
    for graph in protobuf.submessages(protobuf.parse(model), _GRAPH):
        for tensor in protobuf.submessages(graph, _INITIALIZER):
            for entry in protobuf.submessages(tensor, _EXTERNAL_DATA):
                if protobuf.texts(entry, _KEY) == ["location"]:
                    names.update(protobuf.texts(entry, _VALUE))
    return {name for name in names if name and "\0" not in name}

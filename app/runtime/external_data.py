"""External data: weights that an ONNX model keeps in separate files, read into memory.

By default onnxruntime memory-maps such a file. If the file is truncated meanwhile, the process dies (SIGBUS)
as soon as a run reads beyond the new end. Source: onnx.proto3, ``TensorProto.external_data``.
"""

from pathlib import Path

from app.errors import shortened
from app.runtime import protobuf
from app.system.files import read_regular, require_regular

_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2


def external_files(path: Path) -> dict[str, bytes]:
    """Contents of the external data files of a model, by the names in the model.

    Raises:
        ValueError: See ``external_paths``; or a file is not readable, or grows meanwhile.
    """
    found = {}
    for name, file in external_paths(path).items():
        try:
            found[name] = read_regular(file)
        except OSError as error:
            raise ValueError(_refusal(name, error)) from None
    return found


def external_paths(path: Path) -> dict[str, Path]:
    """Paths of the external data files of a model, by the names in the model.

    A name that leads outside the model's folder is omitted: onnxruntime refuses such a model, as it does if a
    file is missing or the model is invalid.

    Raises:
        ValueError: A name refers to a FIFO, a device or the like, which would block onnxruntime.
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
    return f"the external data file {shortened(name)!r} can't be read: {error.strerror}"


def _locations(model: bytes) -> set[str]:
    names: set[str] = set()
    for graph in protobuf.submessages(protobuf.parse(model), _GRAPH):
        for tensor in protobuf.submessages(graph, _INITIALIZER):
            for entry in protobuf.submessages(tensor, _EXTERNAL_DATA):
                if protobuf.texts(entry, _KEY) == ["location"]:
                    names.update(protobuf.texts(entry, _VALUE))
    return {name for name in names if name and "\0" not in name}

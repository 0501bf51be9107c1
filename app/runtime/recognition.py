"""Recognize files that are no ONNX models, and say how to fix them."""

from pathlib import Path

from app.runtime import protobuf
from app.system.files import read_regular

_HEAD_BYTES = 4096
_LARGEST = 1 << 28  # bytes of a file that is looked through for its end
_EXPORT = "export the model to ONNX instead"
_KINDS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (
        (b"version https://git-lfs.github.com/spec/",),
        "the file is a Git LFS pointer, not the model; fetch the model with 'git lfs pull'",
    ),
    (
        (b"<!doctype html", b"<html", b"<head", b"<?xml"),
        "the file is an HTML page, as a download gives that needs a login or another address; download it again",
    ),
    ((b"PK\x03\x04",), f"the file is a ZIP archive, as torch.save writes it; {_EXPORT}"),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), f"the file is a Python pickle; {_EXPORT}"),
    ((b"\x1f\x8b",), "the file is compressed by gzip; unpack it"),
    ((b"{", b"["), f"the file is JSON; {_EXPORT}"),
)


def why_no_model(path: Path) -> str | None:
    """Why a file can't be an ONNX model, for a message; None where it may be one, or can't be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        size = path.stat().st_size
        if not head:
            return "the file is empty; the copy or download may have failed"
        kind = _kind(head)
        if kind is not None:
            return kind
        if size <= _LARGEST:
            protobuf.parse(read_regular(path))
    except OSError:
        return None
    except ValueError as error:
        if "the message ends within" in str(error) and head[0] == 0x08:  # as every model begins: ir_version
            return f"the file ends after {size} bytes, in the middle of the model; copy or download it again"
    return None


def _kind(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((why for starts, why in _KINDS if head.startswith(starts) or text.startswith(starts)), None)

"""Recognize files that are not ONNX models, and say how to fix them."""

from pathlib import Path

from app.runtime import protobuf
from app.system.files import read_regular

_HEAD_BYTES = 4096
_LARGEST = 1 << 28  # largest file in bytes that is parsed to find a truncated end
_EXPORT = "export the model to ONNX instead"
_KINDS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (
        (b"version https://git-lfs.github.com/spec/",),
        "the file is a Git LFS pointer, not the model; fetch the model with 'git lfs pull'",
    ),
    (
        (b"<!doctype html", b"<html", b"<head", b"<?xml"),
        "the file is an HTML page, not the model; the download may require a login or a different URL",
    ),
    ((b"PK\x03\x04",), f"the file is a ZIP archive, probably written by torch.save; {_EXPORT}"),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), f"the file is a Python pickle; {_EXPORT}"),
    ((b"\x1f\x8b",), "the file is compressed by gzip; unpack it"),
    ((b"{", b"["), f"the file is JSON; {_EXPORT}"),
)


def why_no_model(path: Path) -> str | None:
    """The reason why a file is not an ONNX model; None if it may be one, or is not readable."""
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
        if "the message ends within" in str(error) and head[0] == 0x08:  # every model starts with ir_version
            return f"the file ends after {size} bytes, in the middle of the model; copy or download it again"
    return None


def _kind(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((why for starts, why in _KINDS if head.startswith(starts) or text.startswith(starts)), None)

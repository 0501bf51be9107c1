"""Run a command with onnxruntime's kernels for CPUs with AVX2 alone, on a CPU that has more.

    python benchmarks/without_vnni.py python my_script.py

onnxruntime chooses its kernels by the instruction cpuid. In a temporary copy of the installed package each cpuid is
replaced by ud2, an illegal instruction of the same length, and a preloaded library answers the signal: with what cpuid
says, without AVX-512, VNNI and AMX. Only x86-64 Linux, with gcc and objdump.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
LIBRARY = "libwithout_vnni.so"
_SOURCE = Path(__file__).with_suffix(".c")
_SITE = re.compile(r"^\s*([0-9a-f]+):\s+0f a2\s+cpuid\s*$", re.MULTILINE)
_TEXT = re.compile(r"^\s*\d+\s+\.text\s+\S+\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)\s", re.MULTILINE)


def environment(folder: Path) -> dict[str, str]:
    """The environment in which onnxruntime is the patched copy, which is made in the folder."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("onnxruntime is not installed")
    package = folder / "onnxruntime"
    shutil.copytree(Path(spec.origin).parent, package)
    replaced = sum(_patch(path) for path in package.rglob("*.so*"))
    if not replaced:
        raise SystemExit("no cpuid instruction was found in onnxruntime's shared objects")
    library = folder / LIBRARY
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "LD_PRELOAD": str(library), "WITHOUT_VNNI": str(library)}


def _patch(path: Path) -> int:
    """Replace each cpuid of a shared object, at the places that its disassembly has; returns how many."""
    listing = subprocess.run(["objdump", "-d", "-j", ".text", path], capture_output=True, text=True, check=True).stdout
    headers = subprocess.run(["objdump", "-h", path], capture_output=True, text=True, check=True).stdout
    found = _TEXT.search(headers)
    if found is None:
        return 0
    shift = int(found[2], 16) - int(found[1], 16)
    content = bytearray(path.read_bytes())
    sites = [int(site, 16) + shift for site in _SITE.findall(listing)]
    for site in sites:
        if content[site : site + 2] != CPUID:
            raise SystemExit(f"{path.name}: no cpuid at {site:#x}, where its disassembly has one")
        content[site : site + 2] = UD2
    path.write_bytes(content)
    return len(sites)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(sys.argv[1:], env=environment(Path(folder)), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

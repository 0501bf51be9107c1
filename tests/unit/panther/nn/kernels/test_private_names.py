"""Private names of torch and triton: in one file, and each replaceable."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import torch

import panther.nn
from panther.nn.kernels import packed, private_names

NN = Path(panther.nn.__file__).parent
SOURCES = [path for path in sorted(NN.rglob("*.py")) if path.name != "private_names.py"]
OUTSIDE = ("torch", "triton", "tl", "forward_ad")


def private_reads(source: str) -> list[str]:
    """Attributes with a leading underscore that are read from modules of torch or triton, and imports of such."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in OUTSIDE:
                found.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OUTSIDE:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [name for name in names if name.startswith("_") and name != "__future__"]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and str(name.value).startswith("_"):
                found.append(str(name.value))
    return found


def test_the_search_finds_private_names():
    assert private_reads("import torch\ntorch._C._cuda_getDevice()") == ["torch._C._cuda_getDevice", "torch._C"]
    assert private_reads("from torch._dynamo import config") == ["_dynamo"]
    assert private_reads("getattr(torch.compiler, '_is_exporting_flag', False)") == ["_is_exporting_flag"]
    assert private_reads("self._packed, torch.compiler.is_compiling()") == []


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(NN)) for path in SOURCES])
def test_no_other_module_reads_a_private_name(path):
    assert private_reads(path.read_text()) == []


def test_missing_names_cost_speed_and_not_the_result(monkeypatch):
    """A torch without any of them: every layer takes the plain operations, and computes the same."""
    layer = panther.nn.SKLinear(48, 32, 2, 3)
    x = torch.randn(5, 48)
    expected = layer(x).detach()
    spec = importlib.util.spec_from_file_location("without_private_names", private_names.__file__)
    without = importlib.util.module_from_spec(spec)
    missing = ("_are_functorch_transforms_active", "_functorch", "_cuda_getDevice", "_cuda_getCurrentRawStream")
    with monkeypatch.context() as patch:
        for name in (*missing, "_get_fp32_precision_getter"):
            patch.delattr(torch._C, name, raising=False)
        spec.loader.exec_module(without)
    assert without.current_device is torch.cuda.current_device
    assert without.fp32_precision("cuda", "matmul") == torch.backends.cuda.matmul.fp32_precision
    assert without.transformed(), "unknown counts as active"
    assert packed.applicable(x)
    monkeypatch.setattr(packed, "private_names", without)
    assert not packed.applicable(x)
    torch.testing.assert_close(layer(x), expected)


def test_exports_are_told_from_compilation(monkeypatch):
    assert not private_names.is_exporting()
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True)
    assert private_names.is_exporting()
    monkeypatch.delattr(torch.compiler, "_is_exporting_flag")
    assert not private_names.is_exporting()

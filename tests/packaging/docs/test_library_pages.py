"""The documents: their code runs, their tables are true."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from panther.counting import STARTING_POINTS
from panther.nn import SKLinear

DOCS = Path(__file__).parents[3] / "docs"
L, K, D_IN, D_OUT = 3, 4, 96, 80
SIZES = {"L": L, "k": K, "d_in": D_IN, "d_out": D_OUT}


def table(text: str, heading: str) -> list[list[str]]:
    """The rows, as cells, of the first table of a document whose first heading cell is this."""
    lines = text.split(f"\n| {heading} ", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def contract() -> list[tuple[str, tuple[int, ...], str]]:
    rows = table((DOCS / "layers.md").read_text(encoding="utf-8"), "tensor")
    return [
        (name.strip("`"), tuple(SIZES[size.strip()] for size in shape.strip("()").split(",") if size.strip()), kind)
        for name, shape, kind in rows
    ]


class ContractLayer(nn.Module):
    """The tensors of the contract's table and nothing else, as another implementation would hold them."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        for name, shape, kind in contract():
            if kind.startswith("Parameter"):
                self.register_parameter(name, nn.Parameter(torch.randn(shape)) if bias or name != "bias" else None)
            else:
                self.register_buffer(name, torch.randn(shape).sign() / K**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = sum(x @ self.S1s[i] @ self.U1s[i] + x @ self.U2s[i] @ self.S2s[i] for i in range(L))
        y = total / (2 * L)
        return y if self.bias is None else y + self.bias


@pytest.mark.parametrize(("name", "shape", "kind"), contract(), ids=str)
def test_the_contract_table(name, shape, kind):
    layer = SKLinear(D_IN, D_OUT, L, K)
    tensor = getattr(layer, name)
    assert tuple(tensor.shape) == shape
    assert isinstance(tensor, nn.Parameter) == kind.startswith("Parameter")
    assert tensor.requires_grad == kind.startswith("Parameter")
    assert name in layer.state_dict()
    without = SKLinear(D_IN, D_OUT, L, K, bias=False)
    assert (getattr(without, name) is None) == kind.endswith("or None")


def test_the_contract_is_all_that_is_saved():
    assert set(SKLinear(D_IN, D_OUT, L, K).state_dict()) == {name for name, _, _ in contract()}
    assert set(SKLinear(D_IN, D_OUT, L, K, bias=False).state_dict()) == {"S1s", "S2s", "U1s", "U2s"}


@pytest.mark.parametrize("bias", [True, False])
def test_checkpoints_of_either_load_strictly_in_the_other(bias):
    x = torch.randn(5, D_IN)
    theirs, ours = ContractLayer(bias=bias), SKLinear(D_IN, D_OUT, L, K, bias=bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    ours = SKLinear(D_IN, D_OUT, L, K, bias=bias)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


def test_the_table_of_starting_points():
    rows = table((DOCS / "layers.md").read_text(encoding="utf-8"), "width from")
    expected = []
    for point in STARTING_POINTS:
        low, high = point.stored_reduction_percent
        to = "and more" if point.max_features is None else str(point.max_features)
        numbers = [str(point.min_features), to, str(point.num_terms), str(point.low_rank)]
        expected.append([*numbers, f"{low:.0f} to {high:.0f} %"])
    assert rows == expected


@pytest.mark.parametrize("document", ["layers.md", "training.md", "migrating.md", "cookbook.md"])
def test_the_code_runs(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```", (DOCS / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert blocks
    namespace: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, block in enumerate(blocks):
            exec(compile(block, f"{document} block {i}", "exec"), namespace)


def test_what_the_comments_in_the_code_say():
    import panther as pr

    text = (DOCS / "layers.md").read_text(encoding="utf-8")
    calls = re.findall(r"^(pr\.check_parameter_efficiency\(.*?\))\s+# (\(.*\))$", text, re.MULTILINE)
    assert calls
    for call, said in calls:
        assert eval(call, {"pr": pr}) == eval(said)


def test_every_public_name_is_there_and_the_package_is_lazy():
    import subprocess
    import sys

    import panther

    for name in panther.__all__:
        assert getattr(panther, name) is not None
    assert set(panther.__all__) <= set(dir(panther))
    with pytest.raises(AttributeError, match="module 'panther' has no attribute 'nothing'"):
        panther.nothing  # noqa: B018
    code = "import sys, panther; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

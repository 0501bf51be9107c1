"""Sketched layers under FSDP2, and what torch.compile does where a hook surrounds each layer, as FSDP's do."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.training import together
from torch import nn

from panther.nn import SKLinear, functional

FSDP = """
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from panther.nn import LowRankEmbedding, LowRankHead, SKLinear

    def main():
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        mesh = init_device_mesh("cpu", (2,))

        def make():
            torch.manual_seed(0)
            return nn.Sequential(SKLinear(64, 48, 1, 8), nn.ReLU(), SKLinear(48, 32, 1, 4))

        torch.manual_seed(7)
        x = torch.randn(8, 64)
        for dtype, tolerance in ((None, 1e-5), (torch.bfloat16, 0.05)):
            # alone in the same precision: near zero a ReLU lets other rows through
            model, alone = make(), make().to(dtype or torch.float32)
            policy = MixedPrecisionPolicy(param_dtype=dtype)
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
            expected = alone(x.to(dtype or torch.float32)).float()
            expected.square().sum().backward()
            y = model(x[4 * rank :][:4])
            y.float().square().sum().backward()
            assert y.dtype == (dtype or torch.float32)
            torch.testing.assert_close(y.float(), expected[4 * rank :][:4], rtol=tolerance, atol=tolerance)
            for (name, mine), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
                # averaged over the two processes
                gradient = 2 * mine.grad.full_tensor().float()
                error = ((gradient - theirs.grad.float()).norm() / theirs.grad.norm()).item()
                assert error < tolerance, (name, dtype, error)

        def tied():
            torch.manual_seed(0)
            made = nn.Sequential(LowRankEmbedding(40, 16, 4), nn.Tanh(), LowRankHead(16, 40, 4))
            made[2].tie_to(made[0])
            return made

        model, alone, ids = tied(), tied(), torch.arange(8)
        fully_shard(model, mesh=mesh)
        alone(ids).square().sum().backward()
        model(ids[4 * rank :][:4]).square().sum().backward()
        assert len(list(model.parameters())) == 2
        for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(2 * mine.grad.full_tensor(), theirs.grad)
        dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_fully_sharded_layers_agree_with_one_process_also_in_mixed_precision():
    assert together(FSDP, []) == [[0, 0]]


def test_parameters_of_another_type_than_u_decide():
    layer = SKLinear(64, 48, 1, 8)
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    expected = functional.two_products(x.double(), *(f.double() for f in layer.factors()), 1, layer.bias.double())
    cast = {name: value.detach().bfloat16() for name, value in layer.named_parameters()}
    y = torch.func.functional_call(layer, cast, x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05)


class Hooked(nn.Module):
    """Layers with a hook each that torch.compile can't enter, so that each forward is compiled by itself."""

    def __init__(self, widths):
        super().__init__()
        self.layers = nn.ModuleList(SKLinear(a, b, 1, 8) for a, b in itertools.pairwise(widths))
        for layer in self.layers:
            layer.register_forward_pre_hook(torch.compiler.disable(lambda *_: None))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def compiled_frames(module, x):
    counted = []

    def backend(graph, _):
        counted.append(graph)
        return graph.forward

    torch.compiler.reset()
    expected = module(x)
    run = torch.compile(module, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(run(x), expected)
    return len(counted)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_each_size_compiles_once_however_many_there_are(monkeypatch):
    from torch._dynamo import config

    monkeypatch.setattr(config, "fail_on_recompile_limit_hit", True)
    x = torch.randn(4, 64)
    assert compiled_frames(Hooked(range(64, 64 + 8 * 13, 8)), x) == 12
    # the first input needs no gradient, the others do
    assert compiled_frames(Hooked([64] * 13), x) <= 2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_layer_alone_compiles_whole(fullgraph):
    layer, x = SKLinear(64, 48, 1, 8), torch.randn(3, 64)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for function in (layer, layer.forward, lambda rows: layer(rows) + 0):
        torch.compiler.reset()
        graphs.clear()
        torch.testing.assert_close(torch.compile(function, backend=backend, fullgraph=fullgraph)(x), layer(x))
        assert len(graphs) == 1


@pytest.mark.parametrize("strict", [True, False])
def test_a_layer_alone_exports(strict):
    layer, x = SKLinear(64, 48, 1, 8), torch.randn(3, 64)
    program = torch.export.export(layer, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), layer(x))

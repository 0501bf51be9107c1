"""SKLinear goes wherever nn.Linear goes: each test holds a transformed layer to the plain one or to the formula."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers.training import together
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import prune

from panther.linalg.sign_bits import sign_magnitude
from panther.nn import SKLinear, functional
from panther.nn.kernels.packed import pack


def make(**options) -> SKLinear:
    return SKLinear(64, 48, 2, 4, generator=torch.Generator().manual_seed(1), **options)


def rows(*lead: int, dtype: torch.dtype = torch.float32, **options) -> torch.Tensor:
    return torch.randn(*lead, 64, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_(**options)


# torch's own derivatives script some decompositions when they are first used
quiet_jvp = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def definition(layer: SKLinear, x: torch.Tensor) -> torch.Tensor:
    return functional.two_products(x, *layer.factors(), layer.num_terms, layer.bias)


def assert_packed(layer: SKLinear) -> None:
    terms = [layer.S1s, layer.U1s, layer.U2s, layer.S2s]
    assert layer._packed is not None
    assert layer._packed.holds(*terms)
    assert all(term.is_contiguous() for term in terms)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "meta", torch.device("meta")], ids=repr)
def test_device_as_string_or_object(device):
    layer = make(device=device)
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {torch.device(device).type}
    assert layer(torch.zeros(3, 64, device=device)).shape == (3, 48)


def test_meta_then_empty_then_reset():
    layer = SKLinear(784, 512, 2, 64, device="meta", dtype=torch.float16)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert_packed(layer)
    assert sign_magnitude(layer.U1s) == sign_magnitude(layer.U2s) == 0.125
    y = layer(torch.randn(256, 784, dtype=torch.float16))
    assert 0.9 < y.float().std().item() * 3**0.5 < 1.1


@pytest.mark.parametrize("assign", [True, False])
def test_meta_then_load(assign):
    source = make()
    layer = SKLinear(64, 48, 2, 4, device="meta")
    if not assign:
        layer = layer.to_empty(device="cpu")
    layer.load_state_dict(source.state_dict(), assign=assign)
    assert_packed(layer)
    assert torch.equal(layer(rows(3)), source(rows(3)))
    U1s = layer.U1s.clone()
    layer.reset_parameters()
    assert torch.equal(layer.U1s, U1s)


def test_default_device_and_dtype():
    with torch.device("meta"):
        assert make().U1s.is_meta
    torch.set_default_dtype(torch.float64)
    try:
        assert {tensor.dtype for tensor in make().state_dict().values()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grad_enabled", [True, False])
def test_autocast_on_cpu(dtype, grad_enabled):
    layer, x = make(), rows(16, requires_grad=True)
    reference = definition(layer, x)
    reference_grads = torch.autograd.grad(reference.sum(), [x, *layer.parameters()])
    with torch.set_grad_enabled(grad_enabled), torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        twin = nn.Linear(64, 48)(x)
        double = layer.double()(x.double())
        layer.float()
    assert y.dtype == twin.dtype == dtype
    assert double.dtype == torch.float64
    assert (y.float() - reference).abs().max() < 0.05 * reference.abs().max()
    if grad_enabled:
        y.float().sum().backward()
        for tensor, expected in zip([x, *layer.parameters()], reference_grads, strict=True):
            assert tensor.grad.dtype == torch.float32
            assert (tensor.grad - expected).abs().max() < 0.05 * expected.abs().max()


def test_second_derivatives_under_autocast():
    layer, x = make(), rows(4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    (first,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert layer.S1s.grad.isfinite().all()
    assert layer.S1s.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_cuda(dtype):
    layer, x = make(device="cuda"), rows(16).cuda().detach().requires_grad_()
    reference = definition(layer, x)
    with torch.autocast("cuda", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    assert (y.float() - reference).abs().max() < 0.05 * reference.abs().max()
    y.float().sum().backward()
    assert layer.S1s.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend):
    torch.compiler.reset()
    model = nn.Sequential(make(), nn.ReLU(), SKLinear(48, 32, 1, 2))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = rows(5, requires_grad=True)
    torch.testing.assert_close(compiled(x), model(x))
    ours = torch.autograd.grad(compiled(x).square().sum(), [x, *model.parameters()])
    theirs = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("lead", [(4,), (4, 3)], ids=str)
def test_exports_with_a_dynamic_batch(lead):
    layer = make().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (rows(*lead),), dynamic_shapes=({0: batch},))
    x = rows(7, *lead[1:])
    torch.testing.assert_close(program.module()(x), layer(x))


def test_traces_with_fx():
    layer = make()
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(rows(3)), layer(rows(3)))


@quiet_jvp
def test_vmap_jvp_and_per_sample_gradients():
    layer, x = make(dtype=torch.float64), rows(5, dtype=torch.float64)
    torch.testing.assert_close(vmap(layer)(x), layer(x))
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(parameters, row):
        return functional_call(layer, parameters, (row,)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, row in enumerate(x):
        expected = torch.autograd.grad(layer(row).square().sum(), [*layer.parameters()])
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(per_sample[name][i], value)

    tangent = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    dx = torch.randn_like(x)
    _, derivative = jvp(lambda p, x: functional_call(layer, p, (x,)), (parameters, x), (tangent, dx))
    step = 1e-6

    def moved(sign):
        point = {name: parameter + sign * step * tangent[name] for name, parameter in parameters.items()}
        return functional_call(layer, point, (x + sign * step * dx,))

    torch.testing.assert_close(derivative, (moved(1) - moved(-1)) / (2 * step), rtol=1e-5, atol=1e-6)


def test_vmap_over_an_ensemble():
    layers = [SKLinear(64, 48, 2, 4) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = rows(5)
    y = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers]))


@quiet_jvp
def test_forward_mode_and_forward_over_reverse():
    layer = make(dtype=torch.float64)
    x = rows(3, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.S1s, layer.S2s)
    assert torch.autograd.gradcheck(
        lambda x, S1s, S2s: functional_call(layer, {"S1s": S1s, "S2s": S2s}, (x,)),
        inputs,
        check_forward_ad=True,
        check_backward_ad=False,
        fast_mode=True,
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(tangent, torch.ones_like(x) @ layer.dense_weight().t())


def test_deepcopy_and_pickle_are_independent_and_packed():
    layer, x = make(), rows(3)
    layer(x).sum().backward()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_packed(twin)
        assert torch.equal(twin(x), layer(x))
        with torch.no_grad():
            twin.S1s.add_(1)
        assert not torch.equal(twin(x), layer(x))
        assert_packed(layer)


def test_torch_save_of_module_and_state():
    layer = make()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin = SKLinear(64, 48, 2, 4)
    twin.load_state_dict(torch.load(file))
    assert torch.equal(twin(rows(3)), layer(rows(3)))


def test_plain_safetensors_take_the_state(tmp_path):
    layer = make()
    save_file(layer.state_dict(), tmp_path / "state.safetensors")
    for key, value in load_file(tmp_path / "state.safetensors").items():
        assert torch.equal(value, layer.state_dict()[key]), key


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_moving_keeps_it_packed_and_right(dtype):
    layer = nn.Sequential(make())
    layer.to(dtype)
    assert_packed(layer[0])
    x = rows(3, dtype=dtype)
    expected = definition(layer[0].double(), x.double())
    assert (layer.to(dtype)(x).double() - expected).abs().max() < 0.05 * expected.abs().max()


def test_memory_taken_from_under_it_is_noticed():
    layer, x = make(), rows(3)
    for name in ("S1s", "S2s", "U1s", "U2s"):
        tensor = getattr(layer, name)
        tensor.data = torch.randn_like(tensor)
        torch.testing.assert_close(layer(x), definition(layer, x))
    layer.S1s = nn.Parameter(torch.randn_like(layer.S1s))
    torch.testing.assert_close(layer(x), definition(layer, x))


def test_in_place_changes_by_data_count_at_once():
    layer, x = make(), rows(3)
    layer.S1s.data.mul_(3)
    layer.S2s.data.zero_()
    layer.U1s.copy_(torch.randn_like(layer.U1s))
    torch.testing.assert_close(layer(x), definition(layer, x))
    assert_packed(layer)


def test_averaging_by_state_dict_in_place_reaches_the_layer():
    layer = make()
    for value in layer.state_dict().values():
        value.mul_(0)
    assert layer(rows(3)).abs().max() == 0


def test_a_layer_can_share_its_parameters():
    first, second = make(), make()
    second.S1s = first.S1s
    second.double()
    first.double()
    x = rows(3, dtype=torch.float64)
    for layer in (first, second):
        torch.testing.assert_close(layer(x), definition(layer, x))
    assert second.S1s is first.S1s


def test_share_memory_shares_both_halves():
    layer = make()
    layer.share_memory()
    assert layer.S1s.is_shared()
    assert layer.U1s.is_shared()
    assert_packed(layer)
    torch.testing.assert_close(layer(rows(3)), definition(layer, rows(3)))


def test_parametrised_and_pruned_layers():
    layer = make()

    class Double(nn.Module):
        def forward(self, S1s):
            return 2 * S1s

    nn.utils.parametrize.register_parametrization(layer, "S1s", Double())
    torch.testing.assert_close(layer(rows(3)), definition(layer, rows(3)))
    pruned = make()
    prune.random_unstructured(pruned, "S2s", 0.5)
    torch.testing.assert_close(pruned(rows(3)), definition(pruned, rows(3)))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "LBFGS", "Adagrad"])
def test_optimisers_lower_the_loss(optimizer):
    layer, x = make(), rows(32)
    target = torch.randn(32, 48, generator=torch.Generator().manual_seed(4))
    steps = getattr(torch.optim, optimizer)(layer.parameters(), lr=1.0 if optimizer == "SGD" else 0.01)

    def closure():
        steps.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        return loss

    before = closure().item()
    for _ in range(10):
        steps.step(closure)
    assert closure().item() < 0.97 * before
    assert_packed(layer)
    vector = nn.utils.parameters_to_vector(layer.parameters())
    assert vector.numel() == layer.parameter_count().learnable


def test_gradient_checkpointing_and_saved_tensor_hooks():
    layer, x = make(), rows(5, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]), expected, strict=True):
        assert torch.equal(a, b)
    with torch.autograd.graph.save_on_cpu():
        y = layer(x)
    for a, b in zip(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]), expected, strict=True):
        assert torch.equal(a, b)


def test_tensors_that_cannot_be_packed_are_left():
    S, U = nn.Parameter(torch.zeros(1, 2, 3, device="meta")), torch.zeros(1, 2, 3, device="meta")
    assert pack(S, U, U, S) is None
    mixed = (
        torch.zeros(1, 2, 3),
        torch.zeros(1, 3, 2, dtype=torch.float64),
        torch.zeros(1, 2, 3),
        torch.zeros(1, 3, 2),
    )
    assert pack(*mixed) is None


DDP = """
    import torch
    import torch.distributed as dist
    from torch import nn
    from panther.nn import SKLinear

    def main():
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        rank = dist.get_rank()

        def train(model, x, y, steps=5):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            for _ in range(steps):
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()

        # each process starts elsewhere: DDP must bring parameters and U of process 0 to process 1
        torch.manual_seed(rank)
        model = nn.Sequential(SKLinear(64, 48, 2, 4), nn.ReLU(), SKLinear(48, 32, 1, 2))
        parallel = nn.parallel.DistributedDataParallel(model)
        torch.manual_seed(0)
        alone = nn.Sequential(SKLinear(64, 48, 2, 4), nn.ReLU(), SKLinear(48, 32, 1, 2))
        torch.manual_seed(7)
        x, y = torch.randn(16, 64), torch.randn(16, 32)
        train(parallel, x[8 * rank :][:8], y[8 * rank :][:8])
        train(alone, x, y)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
        assert model[0]._packed.holds(model[0].S1s, model[0].U1s, model[0].U2s, model[0].S2s)
        dist.destroy_process_group()
"""


def test_distributed_data_parallel_over_two_gloo_processes():
    assert together(DDP, []) == [[0, 0]]

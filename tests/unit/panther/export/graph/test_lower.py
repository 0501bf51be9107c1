import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from panther.export.errors import ExportError
from panther.export.graph.lower import DENSE, TWO_PRODUCTS, find_sites, lower
from panther.export.graph.trace import trace
from panther.nn import SKLinear

AXES = {"x": {0: "batch"}}


def traced(model, x, axes=AXES, outputs=("y",)):
    return trace(model, {"x": x}, by_name=False, output_names=outputs, dynamic_axes=axes)


def lowered(model, x, plan=TWO_PRODUCTS, transpose_dense=False, **options):
    graph = traced(model, x, **options)
    sites = find_sites(graph)
    lower(graph, sites, {site.name: plan for site in sites}, fold=True, transpose_dense=transpose_dense)
    return graph.model, sites


def outputs(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x.numpy()})


def reference(model, x):
    with torch.no_grad():
        return model.double()(x.double()).numpy()


@pytest.mark.parametrize("plan", [TWO_PRODUCTS, DENSE])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (3, 5)], ids=["1-D", "2-D", "3-D"])
def test_a_layer_as_the_whole_model(lead, bias, plan, sketched):
    layer, x = sketched(64, 32, bias=bias), torch.randn(*lead, 64)
    model, (site,) = lowered(layer, x, plan, axes=AXES if lead else {})
    assert site.layers == ["SKLinear"]
    assert np.allclose(outputs(model, x)[0], reference(layer, x), atol=1e-5)
    other = torch.randn(*[size + 4 for size in lead[:1]], *lead[1:], 64)
    assert np.allclose(outputs(model, other)[0], reference(layer, other), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("lead", "op"), [((5,), "Gemm"), ((3, 5), "MatMul")], ids=["2-D", "3-D"])
def test_a_dense_plan_for_cuda_lies_as_in_nn_linear(lead, op, bias, sketched):
    """The same numbers; on rows, one Gemm over W as (out_features, in_features)."""
    layer, x = sketched(64, 32, bias=bias), torch.randn(*lead, 64)
    model, _ = lowered(layer, x, DENSE, transpose_dense=True)
    (last,) = [node for node in model.graph if x_is_input(node)]
    assert last.op_type == op
    assert ("transB" in last.attributes) == (op == "Gemm")
    assert np.allclose(outputs(model, x)[0], reference(layer, x), atol=1e-5)


def x_is_input(node):
    return any(value is not None and value.name == "x" for value in node.inputs)


@pytest.mark.parametrize("plan", [TWO_PRODUCTS, DENSE])
@pytest.mark.parametrize("biases", [(True, True, True), (True, False, True), (False, True, False), (False,) * 3])
@pytest.mark.parametrize("ranks", [(2, 3, 4), (4, 3, 2), (3, 2, 4)])
def test_layers_with_nothing_between_are_one(ranks, biases, plan):
    sizes = (40, 36, 44, 38)
    layers = [SKLinear(sizes[i], sizes[i + 1], 1, ranks[i], bias=biases[i]) for i in range(3)]
    chain = nn.Sequential(layers[0], nn.Dropout(), layers[1], nn.Identity(), layers[2]).eval()
    x = torch.randn(6, 40)
    model, (site,) = lowered(chain, x, plan)
    assert site.layers == ["0", "2", "4"]
    rank = 2 * min(ranks)
    assert site.shapes(TWO_PRODUCTS) == [(40, rank), (rank, 38)]
    assert np.allclose(outputs(model, x)[0], reference(chain, x), atol=1e-5)


class Read(nn.Module):
    """The middle of the chain is read too."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = SKLinear(32, 32, 1, 4), SKLinear(32, 32, 1, 4), how

    def forward(self, x):
        h = self.a(x)
        if self.how == "output":
            return self.b(h), h
        return self.b(h) + h if self.how == "sum" else self.b(h) + self.b(x)


@pytest.mark.parametrize("how", ["output", "sum", "twice"])
def test_layers_whose_middle_is_read_stay_apart(how):
    module, x = Read(how), torch.randn(4, 32)
    model, sites = lowered(module, x, outputs=("y", "h") if how == "output" else ("y",))
    assert [site.layers for site in sites] == [["a"], ["b"]]
    expected = module.double()(x.double())
    expected = expected if isinstance(expected, tuple) else (expected,)
    for result, wanted in zip(outputs(model, x), expected, strict=True):
        assert np.allclose(result, wanted.detach().numpy(), atol=1e-5)


def test_a_shared_layer_is_stored_once(sketched):
    layer, x = sketched(64, 64), torch.randn(4, 64)
    module = nn.Sequential(layer, nn.Tanh(), nn.ModuleDict({"again": layer})["again"], nn.Tanh(), layer)
    model, (site,) = lowered(module, x)
    assert len(site.nodes) == 3
    assert sum(name.endswith(".bits") for name in model.graph.initializers) == 2
    assert np.allclose(outputs(model, x)[0], reference(module, x), atol=1e-5)


def test_the_graph_names_variable_axes_and_tells_nothing_of_this_machine(mlp):
    model, _ = lowered(mlp, torch.randn(4, 64))
    assert [str(size) for size in model.graph.inputs[0].shape] == ["batch", "64"]
    assert [str(size) for size in model.graph.outputs[0].shape] == ["batch", "32"]
    assert model.opset_imports == {"": 20}
    assert b"/" not in b"".join(p.value.encode() for p in ir.to_proto(model).metadata_props)
    assert b".py" not in ir.to_proto(model).SerializeToString()


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = SKLinear(32, 32, 1, 4)

    def forward(self, x):
        return self.a(x.reshape(4, 32))


class Branches(Fixed):
    def forward(self, x):
        return self.a(x) if x.sum() > 0 else x


def test_an_axis_that_the_model_fixes_is_refused():
    with pytest.raises(ExportError, match=r"axis 0 \('batch'\) of input 'x' was to vary; the model fixes it at 4"):
        traced(Fixed(), torch.randn(4, 32))


def test_a_layer_on_a_vector_fixes_its_only_axis(sketched):
    with pytest.raises(ExportError, match=r"the model fixes it at 64"):
        traced(sketched(64, 32), torch.randn(64))


def test_a_branch_on_values_is_told_in_a_line(capfd):
    with pytest.raises(ExportError, match=r"torch\.onnx could not export Branches: .*data-dependent") as caught:
        traced(Branches(), torch.randn(4, 32))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_graph_is_traced_from_one_row_for_any_number(mlp):
    model, _ = lowered(mlp, torch.randn(1, 64))
    x = torch.randn(7, 64)
    assert np.allclose(outputs(model, x)[0], reference(mlp, x), atol=1e-5)


def test_the_model_is_left_as_it_is(mlp):
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in mlp.state_dict().items()}
    lowered(mlp.train(), torch.randn(4, 64))
    assert mlp.training
    assert [type(part) for part in mlp] == [SKLinear, nn.ReLU, SKLinear]
    for name, tensor in mlp.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])

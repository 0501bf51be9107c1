"""Models of many kinds, from module to proven file; the oracle is torch in float64, run here anew."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from panther.export import ExportError, Input, Output, export_onnx, read_card
from panther.nn import ConditionalSKLinear, ProgressiveSKLinear, SKLinear


def reference(model, *args, **kwargs):
    with torch.no_grad():
        return model.eval().double()(*args, **kwargs)


def close(result, expected, atol=1e-4):
    assert result.shape == tuple(expected.shape)
    return np.allclose(result, expected.numpy(), atol=atol)


def double(tensors):
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


@pytest.mark.parametrize("plan", ["two_products", "dense", "auto"])
@pytest.mark.parametrize("u_storage", ["bits", "float"])
def test_any_batch_size_of_an_mlp(plan, u_storage, mlp, export, run):
    report = export(mlp, torch.randn(1, 64), plan=plan, u_storage=u_storage)
    for rows in (1, 2, 33):
        x = torch.randn(rows, 64)
        assert close(run(report.path, input=x)[0], reference(mlp, x.double()))


def test_the_sketched_cnn_head(sketched, export, run):
    head = [nn.Flatten(), sketched(8 * 13 * 13, 64), nn.ReLU(), sketched(64, 10, k=2)]
    body = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*body, *head)
    model(torch.randn(16, 1, 28, 28))  # running statistics other than their start
    report = export(model.eval(), torch.randn(3, 1, 28, 28))
    x = torch.randn(5, 1, 28, 28)
    assert close(run(report.path, input=x)[0], reference(model, x.double()))
    assert [layer.name for layer in report.card.layers] == ["5", "7"]


def encoder(sketched):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
    for layer in model.layers:
        layer.linear1, layer.linear2 = sketched(64, 128), sketched(128, 64)
    return model.eval()


def test_a_transformer_encoder_of_any_batch_and_sequence(sketched, export, run, products):
    model = encoder(sketched)
    report = export(model, torch.randn(3, 7, 64), dynamic_axes={"src": {0: "batch", 1: "sequence"}})
    for batch, sequence in ((1, 1), (2, 11), (5, 3)):
        x = torch.randn(batch, sequence, 64)
        with torch.no_grad():
            torch.backends.mha.set_fastpath_enabled(False)
            expected = reference(model, x.double())
            torch.backends.mha.set_fastpath_enabled(True)
        assert close(run(report.path, src=x)[0], expected)
    assert products(report.path).count((64, 16)) == 2
    assert products(report.path).count((16, 128)) == 2


def bert(sketched, kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=90,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=24,
    )
    model = getattr(transformers, kind)(config).eval()
    for layer in getattr(model, "bert", model).encoder.layer:
        layer.intermediate.dense, layer.output.dense = sketched(64, 128), sketched(128, 64)
    return model


@pytest.mark.parametrize(
    ("kind", "names"),
    [("BertModel", ["last_hidden_state", "pooler_output"]), ("BertForSequenceClassification", ["logits"])],
)
def test_a_model_of_transformers(kind, names, sketched, export, run):
    model = bert(sketched, kind)
    ids, mask = torch.randint(0, 90, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    report = export(model, {"input_ids": ids, "attention_mask": mask}, dynamic_axes=axes)
    assert [output.name for output in report.card.outputs] == names
    for shape in ((1, 1), (2, 17)):
        ids = torch.randint(0, 90, shape)
        mask = (torch.arange(shape[1]) < torch.tensor([[shape[1]], [max(1, shape[1] - 3)]])[: shape[0]]).long()
        outputs = run(report.path, input_ids=ids, attention_mask=mask)
        expected = reference(model, input_ids=ids, attention_mask=mask)
        for name, result in zip(names, outputs, strict=True):
            assert close(result, expected[name])


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = SKLinear(64, 32, 1, 8), SKLinear(48, 32, 1, 8)

    def forward(self, u, v=None, *, scale=2.0, flag=True):
        summed = self.a(u) * scale + (self.b(v) if flag else 0)
        return {"sum": summed, "parts": (self.a(u), None), "largest": summed.argmax(-1)}


@pytest.mark.parametrize("by_name", [True, False])
def test_several_inputs_and_outputs(by_name, export, run):
    model, u, v = Several(), torch.randn(4, 64), torch.randn(4, 48)
    report = export(model, {"u": u, "v": v} if by_name else [u, v])
    assert [entry.name for entry in report.card.inputs] == ["u", "v"]
    assert [entry.name for entry in report.card.outputs] == ["sum", "output_1", "largest"]
    u, v = torch.randn(9, 64), torch.randn(9, 48)
    expected = reference(model, u.double(), v.double())
    total, part, largest = run(report.path, u=u, v=v)
    assert close(total, expected["sum"])
    assert close(part, expected["parts"][0])
    assert np.array_equal(largest, expected["largest"].numpy())


class Arguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = SKLinear(64, 64, 1, 8)

    def forward(self, *xs):
        return self.a(x=xs[0]) + xs[1]


def test_arguments_without_names_and_layers_called_by_keyword(export, run):
    model = Arguments()
    report = export(model, [torch.randn(4, 64), torch.randn(4, 64)])
    first, second = torch.randn(2, 64), torch.randn(2, 64)
    assert close(run(report.path, xs_0=first, xs_1=second)[0], reference(model, first.double(), second.double()))


class Tied(nn.Module):
    """Tied embeddings, an integer buffer that counts as nothing, an input of integers."""

    def __init__(self):
        super().__init__()
        self.embedding, self.a = nn.Embedding(50, 64), SKLinear(64, 64, 1, 8)
        self.out = nn.Linear(64, 50, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(20))

    def forward(self, ids):
        return self.out(self.a(self.embedding(ids) + self.positions[: ids.shape[1]].unsqueeze(-1)).relu())


def test_tied_weights_and_integer_buffers(export, run):
    model = Tied()
    report = export(model, torch.randint(0, 50, (3, 7)), dynamic_axes={"ids": {0: "batch", 1: "sequence"}})
    ids = torch.randint(0, 50, (2, 11))
    assert close(run(report.path, ids=ids)[0], reference(model, ids), atol=1e-3)
    layer = 8 * 128 + 64
    assert report.card.totals.model.learnable == 50 * 64 + layer
    assert report.card.totals.sketched_layers.fixed == 8 * 128


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_types_are_exported_as_float32(dtype, sketched, export, run):
    model = sketched(64, 32).to(dtype)
    report = export(model, torch.randn(4, 64, dtype=dtype))
    assert model.S1s.dtype == dtype
    x = torch.randn(4, 64)
    assert close(run(report.path, x=x)[0], reference(model, x.double()))


def test_a_model_without_sketched_layers(export, run):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    report = export(model, torch.randn(4, 8))
    assert report.card.layers == ()
    assert report.card.latency is None
    assert report.card.storage.u_storage == "float"
    x = torch.randn(3, 8)
    assert close(run(report.path, input=x)[0], reference(model, x.double()))


def test_a_model_that_cannot_compute_in_float64_is_checked_in_float32(sketched, export):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.mixing = sketched(64, 32), torch.randn(32, 32)

        def forward(self, x):
            return self.a(x) @ self.mixing

    assert export(Single(), torch.randn(4, 64)).card.check.reference.endswith("float32")


def test_a_grown_layer(export, run):
    layer = ProgressiveSKLinear(64, 48, initial_terms=1, max_terms=2, initial_rank=2, max_rank=4)
    layer.increase_complexity()
    model = nn.Sequential(layer, nn.ReLU())
    report = export(model, torch.randn(4, 64))
    assert [(entry.num_terms, entry.low_rank) for entry in report.card.layers] == [(2, 4)]
    x = torch.randn(3, 64)
    assert close(run(report.path, input=x)[0], reference(model, x.double()))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("branch", ["sketched", "standard"])
def test_either_branch_of_a_conditional_layer(branch, whole, export, run):
    layer = ConditionalSKLinear(64, 48, sketch_threshold=3, num_terms=1, low_rank=8)
    model = layer if whole else nn.Sequential(layer, nn.ReLU())
    report = export(model, torch.randn(4, 64), conditional=branch)
    assert isinstance(layer, ConditionalSKLinear)
    assert len(report.card.layers) == (branch == "sketched")
    chosen = layer.as_sketched() if branch == "sketched" else layer.as_standard()
    name = report.card.inputs[0].name
    for rows in (1, 5):
        x = torch.randn(rows, 64)
        expected = reference(chosen, x.double())
        assert close(run(report.path, **{name: x})[0], expected if whole else expected.relu())


def test_a_conditional_layer_needs_a_choice(export, tmp_path):
    model = nn.Sequential(ConditionalSKLinear(64, 48, num_terms=1, low_rank=8))
    with pytest.raises(ValueError, match=r"layer '0' chooses its branch .* conditional='sketched' or"):
        export(model, torch.randn(4, 64))
    with pytest.raises(ValueError, match=r"conditional \('both'\) must be one of"):
        export(model, torch.randn(4, 64), conditional="both")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("in_repository", [True, False])
def test_weights_in_a_file_of_their_own(in_repository, sketched, export, run, tmp_path):
    model = sketched(512, 256, k=16)
    target = tmp_path / "models" if in_repository else tmp_path / "net.onnx"
    for _ in range(2):
        report = export(model, torch.randn(4, 512), target, external_data_bytes=10_000)
    folder = report.path.parent
    data = [file for file in folder.iterdir() if file.suffix == ".data"]
    assert len(data) == 1
    assert report.file_bytes == report.path.stat().st_size + data[0].stat().st_size
    assert report.path.stat().st_size < 20_000 < data[0].stat().st_size
    x = torch.randn(3, 512)
    assert close(run(report.path, x=x)[0], reference(model, x.double()))
    assert read_card(onnx.load(report.path, load_external_data=False))["name"] == "m"


def test_bits_are_bit_exact_to_floats_and_far_smaller(export, run, optimized):
    """The size that issue and docs name: 4096², L4, k128."""
    layer = SKLinear(4096, 4096, 4, 128).eval()
    x = torch.randn(4, 4096)
    constants, sizes, outputs = [], [], []
    for storage in ("bits", "float"):
        report = export(layer, x, u_storage=storage, name=storage)
        graph = optimized(report.path)
        assert [node.op_type for node in graph.node] == ["MatMul", "Gemm"]
        constants.append({tuple(tensor.dims): tensor.raw_data for tensor in graph.initializer})
        sizes.append(report.file_bytes)
        outputs.append(run(report.path, x=x)[0])
    assert constants[0] == constants[1]
    assert np.array_equal(*outputs)
    assert sizes[0] <= 17_500_000
    assert 33_500_000 < sizes[1] < 33_700_000


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("float32", 0, 2e-6), ("float16", 1e-5, 5e-3), ("int8", 1e-3, 4e-2)]
)
def test_each_precision_is_as_exact_as_its_card_says(precision, least, most, export, run):
    model = nn.Sequential(SKLinear(256, 256, 1, 32), nn.ReLU(), SKLinear(256, 10, 1, 4))
    x = torch.randn(64, 256)
    report = export(model, x, precision=precision)
    check = report.card.check
    (y,) = run(report.path, input=x)
    assert y.dtype == np.float32
    expected = reference(model, x.double()).numpy()
    error = np.abs(y - expected).max() / np.abs(expected).max()
    assert least < error < most
    assert error <= check.max_relative_error * 1.001 <= most
    assert 0 < check.mean_relative_error < check.max_relative_error < check.tolerance
    assert report.card.storage.precision == precision
    weights = 2 * 1 * 32 * 512 + 2 * 4 * 266
    bytes_an_entry = {"float32": 4, "float16": 2, "int8": 1.125}[precision]
    assert report.card.storage.weight_bytes == pytest.approx(weights * bytes_an_entry, rel=0.1)


def test_the_digits_keep_two_products_a_layer(export, products):
    model = nn.Sequential(
        SKLinear(784, 512, 2, 64), nn.ReLU(), SKLinear(512, 256, 2, 32), nn.ReLU(), nn.Linear(256, 10)
    )
    report = export(model, torch.randn(4, 784))
    assert products(report.path) == [(784, 256), (256, 512), (512, 128), (128, 256), (256, 10)]


ERRORS = [
    ({"name": "a/b"}, ValueError, "model name 'a/b' must be"),
    ({"plan": "three"}, ValueError, r"plan \('three'\) must be 'auto', 'two_products' or 'dense'"),
    ({"plan": {"9": "dense"}}, ValueError, r"plan names layer '9'; the sketched layers are \['0', '2'\]"),
    ({"u_storage": "zip"}, ValueError, r"u_storage \('zip'\) must be one of"),
    ({"precision": "int4"}, ValueError, r"precision \('int4'\) must be one of"),
    ({"target": "tpu"}, ValueError, r"target device \('tpu'\)"),
    ({"num_threads": 0}, ValueError, r"num_threads \(0\) must be at least 1"),
    ({"batch_sizes": ()}, ValueError, r"batch_sizes \(\[\]\) must be positive"),
    ({"batch_sizes": (0,)}, ValueError, r"batch_sizes \(\[0\]\) must be positive"),
    ({"tolerance": 0.0}, ValueError, r"tolerance \(0\.0\) must be positive"),
    ({"max_weight_bytes": 10}, ValueError, r"max_weight_bytes \(10\) must be at least [\d,]+, the bytes"),
    ({"dynamic_axes": {"y": {0: "b"}}}, ValueError, r"dynamic_axes names input 'y'; the inputs are \['input'\]"),
    ({"dynamic_axes": {"input": {2: "b"}}}, ValueError, "input 'input' has 2 axes; there is no axis 2"),
    ({"dynamic_axes": {"input": {0: "my batch"}}}, ValueError, "'my batch' of axis 0 .* must be an identifier"),
    (
        {"dynamic_axes": {"input": {1: "f"}}},
        ExportError,
        r"axis 1 \('f'\) of input 'input' was to vary.* fixes it at 64",
    ),
    ({"inputs": [Input("a"), Input("b")]}, ValueError, r"holds 1 tensors; named are the inputs \['a', 'b'\]"),
    ({"outputs": [Output("a"), Output("b")]}, ValueError, r"outputs names \['a', 'b'\]; Sequential returns 1 tensors"),
    ({"outputs": [Output("y", labels=("a", "b"))]}, ValueError, r"output 'y' has shape .* and 2 labels"),
]


@pytest.mark.parametrize(("options", "error", "message"), ERRORS, ids=[str(entry[0]) for entry in ERRORS])
def test_bad_arguments_are_told_and_leave_nothing(options, error, message, mlp, export, tmp_path):
    with pytest.raises(error, match=message) as caught:
        export(mlp, torch.randn(4, 64), **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_the_model_does_not_take(mlp, export):
    with pytest.raises(ExportError, match=r"Sequential does not take the example inputs \{'input': \(4, 63\)\}"):
        export(mlp, torch.randn(4, 63))
    with pytest.raises(ValueError, match=r"'input' of shape \(0, 64\) holds no values"):
        export(mlp, torch.randn(0, 64))
    with pytest.raises(TypeError, match="example input 'input' must be a tensor, not ndarray"):
        export(mlp, [np.zeros((4, 64))])
    with pytest.raises(ValueError, match="axis 'batch' is 4 in input 'u' and 3 in 'v'"):
        export(Several(), [torch.randn(4, 64), torch.randn(3, 48)])


def test_cuda_is_refused_where_there_is_none(mlp, tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is CUDA")
    with pytest.raises(ExportError, match="this onnxruntime has no CUDA: install the extra 'gpu'"):
        export_onnx(mlp, torch.randn(4, 64), tmp_path, name="m", target="cuda", plan="dense")

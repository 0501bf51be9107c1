import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

import panther as pr
from panther.export import export_onnx


def test_it_is_what_onnxruntime_gives_on_the_same_data(model, tokens, tmp_path):
    compressed = pr.compress(
        model, calibration=tokens.split(48), max_error=0.1, compare=True, kinds=["int8", "low_rank_int8"], probes=2
    )
    (side,) = compressed.report.rivals
    source, path = tmp_path / "float.onnx", tmp_path / "dynamic.onnx"
    export_onnx(model, tokens[:16], source, name="a", num_threads=1, batch_sizes=(1,))
    quantize_dynamic(source, path, per_channel=True, weight_type=QuantType.QInt8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(None, {"tokens": part.numpy()})[0] for part in tokens.split(48)])
    with torch.no_grad():
        y = model(tokens).numpy()
    assert side.output_error == pytest.approx(np.linalg.norm(found - y) / np.linalg.norm(y), rel=1e-3)
    assert 0.2 < side.bytes / compressed.report.bytes_before < 0.35
    assert side.name in str(compressed.report)


def test_a_model_that_can_not_be_exported_is_noted(tokens):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 64)

        def forward(self, x):
            y = self.layer(x)
            return torch.linalg.qr(y).R @ y.t() if bool((x != x).any()) else y

    compressed = pr.compress(
        Odd().eval(),
        calibration=torch.randn(64, 8),
        max_error=0.1,
        compare=True,
        kinds=["int8", "low_rank_int8"],
        probes=2,
    )
    assert compressed.report.rivals == ()
    assert any("could not be compared" in note for note in compressed.report.notes)

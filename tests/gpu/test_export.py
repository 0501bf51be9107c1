"""Exports for CUDA, run by onnxruntime on a real GPU."""

import copy

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import panther as pr
from panther.export import export_onnx
from panther.export.ort import Target, load

pytestmark = pytest.mark.gpu

if "CUDAExecutionProvider" not in ort.get_available_providers():
    pytest.skip("needs onnxruntime-gpu", allow_module_level=True)


@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_in_blocks_are_multiplied_on_the_device(tmp_path, bits, low_rank, activation_bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 192)).eval()
    x = torch.randn(256, 256)
    quantized = copy.deepcopy(model)
    if low_rank:
        pr.sketch_(quantized, ratio=0.5, calibration=x.split(64))
    blocks = pr.quantize.Blocks(bits=bits, activation_bits=activation_bits)
    pr.quantize_(quantized, calibration=x.split(64), weights=blocks)
    report = export_onnx(quantized, x[:8], tmp_path / "model.onnx", name="model", target="cuda", batch_sizes=(1, 8))
    # a CUDA graph takes no node that runs on the CPU
    session = load(report.path, Target("cuda", 1), cuda_graph=True)
    names = session.get_inputs()[0].name, session.get_outputs()[0].name
    binding = session.io_binding()
    device = ort.OrtValue.ortvalue_from_numpy(x[:8].numpy(), "cuda", 0)
    out = ort.OrtValue.ortvalue_from_shape_and_type((8, 192), np.float32, "cuda", 0)
    binding.bind_ortvalue_input(names[0], device)
    binding.bind_ortvalue_output(names[1], out)
    with torch.no_grad():
        expected = quantized(x[:8]).numpy()
    for _ in range(3):
        session.run_with_iobinding(binding)
        # activations stay floats on the device
        np.testing.assert_allclose(out.numpy(), expected, atol=(1e-4 if activation_bits is None else 2e-2) * 3)


def test_static_int8_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval()
    pr.quantize_(model, calibration=torch.randn(64, 64))
    with pytest.raises(ValueError, match="8-bit integers on the CPU alone"):
        export_onnx(model, torch.randn(8, 64), tmp_path / "model.onnx", name="model", target="cuda")

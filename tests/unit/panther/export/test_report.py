import re

import torch
from torch import nn

from panther.nn import SKLinear


def test_a_printed_report_names_what_was_measured_with_what_and_in_which_unit(export, mlp):
    report = export(mlp, torch.randn(4, 64), batch_sizes=(1, 8))
    text = str(report)
    assert text.startswith(f"{report.path}, version 1 of 'm'")
    for part in (
        rf"file +{report.file_bytes:,} +bytes",
        rf"weights of the dense twin +{report.card.dense_twin.weight_bytes:,} +bytes",
        r"largest error of 'output' +\d\.\de-\d\d +of its largest value +onnxruntime .* against torch .*float64",
        r"one run, batch 8 +[\d,.]+ +µs +onnxruntime [\d.]+ on cpu, 1 threads, median",
        r"64→48 +1·8 +x·A·B",
    ):
        assert re.search(part, re.sub(r"\n +", " ", text)), (part, text)


def test_without_sketched_layers_there_is_no_table_of_them(export, tmp_path):
    text = str(export(nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8), tmp_path / "m.onnx"))
    assert text.startswith(f"{tmp_path / 'm.onnx'}\n")
    assert "one run" not in text
    assert "+fixed" not in text


def test_notes_are_printed(export):
    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = SKLinear(64, 48, 1, 8)

        def forward(self, x):
            return self.layer(x), "text"

    assert "note: [1] (str) is not a tensor; the file has no output for it" in str(export(Echo(), torch.randn(4, 64)))

"""Masks in the export's check, whichever way round they are."""

import numpy as np
import pytest
import torch
from torch import nn

from panther.export import ExportError
from panther.export.verify.masks import cut, entries_of, hidden_rows, is_mask

BATCH, LENGTH = 4, 10
AXES = {"x": {0: "batch", 1: "sequence"}, "pad": {0: "batch", 1: "sequence"}}


class Encoder(nn.Module):
    """Self-attention over a mask whose True hides, or whose 1 lets through."""

    def __init__(self, *, hides):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1)
        self.hides = hides

    def forward(self, x, pad):
        return self.encoder(x, src_key_padding_mask=pad.bool() if self.hides else pad == 0)


def padding(lengths, *, hides, dtype):
    visible = torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)
    return (~visible if hides else visible).to(dtype)


CASES = [
    (True, torch.bool, (10, 8, 3, 10)),
    (True, torch.bool, (0, 0, 9, 1)),
    (False, torch.bool, (2, 3, 1, 2)),
    (False, torch.int64, (10, 0, 5, 10)),
    (True, torch.int64, (10, 0, 5, 10)),
    (False, torch.float32, (2, 3, 1, 0)),
]


@pytest.fixture(autouse=True)
def _slow_path():
    """The fast path of eval mode leaves zeros at padded places, which no other run of the model does."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize(("hides", "dtype", "lengths"), CASES)
def test_padded_rows_either_way_round(hides, dtype, lengths, export, run):
    model, x = Encoder(hides=hides).eval(), torch.randn(BATCH, LENGTH, 32)
    pad = padding(lengths, hides=hides, dtype=dtype)
    report = export(model, (x, pad), dynamic_axes=AXES)
    assert report.card.check.max_relative_error < 1e-5
    whole = [length > 0 for length in lengths]
    with torch.no_grad():
        expected = model.double()(x.double(), pad)[whole].numpy()
    assert np.allclose(run(report.path, x=x, pad=pad)[0][whole], expected, atol=1e-5)


def test_values_that_were_not_compared_are_counted(export):
    x = torch.randn(BATCH, LENGTH, 32)
    pad = padding((10, 0, 5, 10), hides=True, dtype=torch.bool)
    check = export(Encoder(hides=True).eval(), (x, pad), dynamic_axes=AXES).card.check
    # the hidden row in both sets of the example's size; less than three rows in the sets that are cut
    assert 2 * LENGTH * 32 <= check.left_out <= (3 * LENGTH + BATCH) * 32
    assert check.left_out % 32 == 0


class Breaks(nn.Module):
    """Not finite in the file alone: what a mask lets through is compared all the same."""

    def forward(self, x, mask):
        y = x * mask.unsqueeze(-1)
        return torch.log(-1 - y.abs()) if torch.compiler.is_exporting() else y


@pytest.mark.parametrize("value", [0, 1])
def test_a_file_that_is_not_finite_where_nothing_is_hidden_is_refused(value, export):
    mask = torch.full((BATCH, LENGTH), value)
    axes = {"x": {0: "batch"}, "mask": {0: "batch"}}
    with pytest.raises(ExportError, match=r"output 'output' is not finite where torch's is"):
        export(Breaks(), (torch.randn(BATCH, LENGTH, 4), mask), dynamic_axes=axes)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor([True, False]), True),
        (torch.tensor([0, 1, 1]), True),
        (torch.tensor([0.0, 1.0]), True),
        (torch.tensor([0.0, -torch.inf]), True),
        (torch.tensor([0.0, -3.4e38]), True),
        (torch.tensor([0.0, -1.0]), False),
        (torch.tensor([0.0, -1e9, 2.0]), False),
        (torch.tensor([0, 2]), False),
        (torch.tensor([0.5, 1.0]), False),
    ],
)
def test_what_is_taken_for_a_mask(tensor, expected):
    assert is_mask(tensor) is expected


def test_an_axis_of_a_mask_cut_to_one_entry():
    mask = torch.tensor([[True, False], [False, False]])
    assert cut(mask, 1, lets_through="largest").tolist() == [[True], [False]]
    assert cut(mask, 1, lets_through="smallest").tolist() == [[False], [False]]
    additive = torch.tensor([[0.0, -torch.inf]])
    assert cut(additive, 1, lets_through="largest").tolist() == [[0.0]]


@pytest.mark.parametrize("hiding", [0, 1])
def test_the_rows_that_a_mask_hides_are_found_by_trying(hiding):
    mask = torch.tensor([[1, 1], [0, 0], [0, 1]])
    inputs = {"mask": mask, "x": torch.ones(3)}
    rows = hidden_rows(inputs, lambda given: not bool((given["mask"] == hiding).all(-1).any()))
    assert [hidden.tolist() for hidden in rows] == [[hiding == 1, hiding == 0, False]]
    assert entries_of(rows, (3, 2)).tolist() == [[hiding == 1] * 2, [hiding == 0] * 2, [False] * 2]
    assert entries_of(rows, (5,)).all()


def test_where_the_mask_is_not_the_cause_nothing_is_excused():
    mask = torch.tensor([[1, 1], [0, 0]])
    assert hidden_rows({"mask": mask}, lambda _: False) == []
    assert hidden_rows({"mask": mask}, lambda _: True) == []
    assert hidden_rows({"x": torch.randn(3)}, lambda _: True) == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_fast_path_that_gives_other_values_is_named(export):
    torch.backends.mha.set_fastpath_enabled(True)
    pad = padding((10, 8, 3, 10), hides=True, dtype=torch.bool)
    report = export(Encoder(hides=True).eval(), (torch.randn(BATCH, LENGTH, 32), pad), dynamic_axes=AXES)
    (note,) = report.card.notes
    assert note.startswith(
        "output: the fast path of nn.TransformerEncoder, which writes zeros at padded places, differs"
    )

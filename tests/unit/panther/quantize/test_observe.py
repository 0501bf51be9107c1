import torch
from torch import nn

from panther.convert.layers import find_units
from panther.quantize.observe import observe


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.out = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x, attention_mask=None):
        self.k(x)
        return self.out(self.q(x) + 1)


def seen(batches, sample=100):
    model = Attention()
    units = {unit.name: unit for unit in find_units(model, None, ())}
    generator = torch.Generator().manual_seed(0)
    return observe(model, list(units.values()), batches, None, sample=sample, generator=generator), units


def test_layers_that_read_the_same_tensor_are_one_group():
    found, _ = seen([torch.randn(3, 5, 4), torch.randn(2, 5, 4)])
    assert [[unit.name for unit in group] for group in found.groups()] == [["q", "k"], ["out"]]
    assert found.examples == 5


def test_rows_are_sampled_from_every_batch_and_ends_cover_all():
    batches = [torch.randn(3, 5, 4), torch.randn(40, 5, 4) + 10]
    found, units = seen(batches, sample=20)
    rows, every = found.rows[id(units["q"])], torch.cat([batch.flatten(0, 1) for batch in batches])
    assert rows.shape == (20, 4)
    assert (rows > 5).all(1).sum() == 10
    assert (rows.unsqueeze(1) == every).all(-1).any(1).all()
    assert torch.equal(found.highest[id(units["q"])], every.amax(0))
    assert torch.equal(found.lowest[id(units["q"])], every.amin(0))


def test_padding_is_left_out():
    x, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    x[1, 3:] = 1e6
    found, units = seen([{"x": x, "attention_mask": mask}])
    assert found.rows[id(units["q"])].shape == (8, 4)
    assert found.highest[id(units["k"])].max() < 1e3

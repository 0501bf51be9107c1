"""The padding of a convolution, against torch's own convolutions on inputs that were padded before."""

import pytest
import torch
from torch import nn

from panther.nn.padding import own_padding, pad_fully, padded, padding_sides

OPTIONS = [
    {"padding": 0},
    {"padding": (2, 1)},
    {"padding": "valid"},
    {"padding": "same"},
    {"padding": "same", "kernel_size": (2, 4), "dilation": (1, 3)},
    {"padding": (1, 2), "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "circular"},
]


# of torch, where the oracle pads by an odd width
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_convolution_of_the_padded_input_gives_the_same(options):
    conv = nn.Conv2d(3, 4, **{"kernel_size": 3, **options})
    x = torch.randn(2, 3, 9, 8)
    x_padded, left = padded(x, conv)
    for given, padding in ((x_padded, left), (pad_fully(x, conv), 0)):
        found = nn.functional.conv2d(given, conv.weight, conv.bias, padding=padding, dilation=conv.dilation)
        torch.testing.assert_close(found, conv(x))


def test_a_padding_that_torch_applies_itself_costs_no_copy():
    x = torch.randn(2, 3, 9)
    assert padded(x, nn.Conv1d(3, 4, 5, padding="same"))[0] is x
    assert pad_fully(x, nn.Conv1d(3, 4, 5)) is x
    assert own_padding(nn.Conv1d(3, 4, 5, padding="same")) == (2,)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({"padding": 2}, [(2, 2)]),
        ({"padding": "valid"}, [(0, 0)]),
        ({"padding": "same", "dilation": 3}, [(4, 5)]),
    ],
)
def test_sides_of_a_convolution_with_an_even_kernel(options, sides):
    assert padding_sides(nn.Conv1d(3, 4, 4, **options)) == sides

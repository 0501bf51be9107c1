"""Convolutions stored in 8 bits beside torch's own, by the weight that they say they have."""

import pytest
import torch
from torch import nn

from panther.nn.quantized import Int4Kernel, Int8Kernel, StoredConv


def kernel(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return Int8Kernel(
        torch.randint(-127, 128, shape, generator=generator).to(torch.int8), torch.rand(shape[0], generator=generator)
    )


def same_options(conv, weight, bias):
    """A torch convolution of the options of another, with this weight."""
    reference = type(conv)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias is not None,
        conv.padding_mode,
    )
    reference.weight = nn.Parameter(weight)
    if bias is not None:
        reference.bias = nn.Parameter(bias)
    return reference.double()


CASES = {
    "plain": (lambda: nn.Conv2d(6, 8, 3, padding=1), [(8, 6, 3, 3)]),
    "strided, dilated": (lambda: nn.Conv2d(6, 8, (3, 2), stride=2, dilation=(1, 2)), [(8, 6, 3, 2)]),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2, bias=False), [(8, 3, 3, 3)]),
    "depthwise, reflecting": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect"), [(6, 1, 3, 3)]),
    "one axis": (lambda: nn.Conv1d(6, 8, 5, stride=2, padding=2), [(8, 6, 5)]),
    "kernel first": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), [(4, 6, 3, 3), (8, 4, 1, 1)]),
    "kernel last, circular": (
        lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
        [(4, 6, 1, 1), (8, 4, 3, 3)],
    ),
    "1x1": (lambda: nn.Conv2d(6, 8, 1, stride=2), [(4, 6, 1, 1), (8, 4, 1, 1)]),
    "one axis, pair, same": (lambda: nn.Conv1d(6, 8, 4, padding="same"), [(4, 6, 4), (8, 4, 1)]),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_computes_what_torch_does_with_its_weight(name):
    torch.manual_seed(0)
    make, shapes = CASES[name]
    conv = make()
    layer = StoredConv(conv, *(kernel(*shape) for shape in shapes), bias=conv.bias)
    x = torch.randn(2, 6, *(11,) * layer.axes)
    with torch.no_grad():
        wanted, y, alone = same_options(conv, layer.weight, conv.bias)(x.double()), layer(x), layer(x[0])
    assert y.shape == conv(x).shape
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-4 * float(wanted.abs().max()))
    torch.testing.assert_close(alone, y[0], rtol=1e-5, atol=1e-5 * float(y.abs().max()))
    entries = sum(torch.Size(shape).numel() for shape in shapes)
    scales = sum(shape[0] for shape in shapes)
    assert layer.stored_entries == entries
    assert layer.stored_bytes == entries + 4 * scales + (0 if conv.bias is None else 4 * conv.out_channels)
    assert layer.dense_entries == conv.weight.numel() == layer.weight.numel()
    assert layer.rank == (shapes[0][0] if len(shapes) == 2 else None)


def test_the_nearest_is_off_by_half_a_step():
    weight = torch.randn(5, 3, 3, 3)
    rounded = Int8Kernel.nearest(weight)
    step = weight.flatten(1).abs().amax(1) / 127
    assert ((rounded.weight - weight).flatten(1).abs() <= 0.501 * step.unsqueeze(1)).all()
    assert (Int8Kernel.nearest(torch.zeros(2, 3, 1)).weight == 0).all()


def test_what_does_not_fit_is_refused():
    conv = nn.Conv2d(6, 8, 3)
    with pytest.raises(ValueError, match=r"\(8, 6, 3, 3\)"):
        StoredConv(conv, kernel(8, 6, 1, 1))
    with pytest.raises(ValueError, match="must have shape"):
        StoredConv(conv, kernel(4, 6, 3, 3), kernel(8, 5, 1, 1))
    with pytest.raises(ValueError, match="2 groups has one weight"):
        StoredConv(nn.Conv2d(6, 8, 3, groups=2), kernel(4, 6, 3, 3), kernel(8, 4, 1, 1))
    with pytest.raises(ValueError, match=r"torch\.float32.*torch\.int8"):
        Int8Kernel(torch.zeros(2, 3, 1), torch.ones(2))
    with pytest.raises(ValueError, match="scale"):
        Int8Kernel(torch.zeros(2, 3, 1, dtype=torch.int8), torch.ones(3))


def test_nibbles_hold_the_integers_and_their_blocks():
    integers = torch.randint(-7, 8, (5, 3, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scale = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    layer = Int4Kernel(integers, scale)
    assert (layer.block_size, layer.stored_bytes) == (9, 5 * 14 + 4 * 15)
    torch.testing.assert_close(layer.weight, integers * scale.repeat_interleave(9, 1).view(5, 3, 3, 3))
    other = Int4Kernel(torch.zeros_like(integers), torch.ones(5, 3))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    conv = nn.Conv2d(3, 5, 3)
    x = torch.randn(2, 3, 6, 6)
    y = StoredConv(conv, layer, bias=conv.bias)(x)
    torch.testing.assert_close(y, nn.functional.conv2d(x, layer.weight, conv.bias))


def test_compile_export_and_autocast_of_nibbles():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    integers = torch.randint(-7, 8, conv.weight.shape).to(torch.int8)
    layer = StoredConv(conv, Int4Kernel(integers, torch.full((8, 1), 0.02)), bias=conv.bias).eval()
    x = torch.randn(2, 3, 6, 6)
    expected = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), expected)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.testing.assert_close(exported.module()(torch.cat([x, x])), torch.cat([expected, expected]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert (y.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("integers", "scale", "match"),
    [
        (torch.full((2, 3, 3), 8, dtype=torch.int8), torch.ones(2, 1), "from -7 to 7"),
        (torch.zeros(2, 3, 3), torch.ones(2, 1), "kernel of torch.int8"),
        (torch.zeros(2, 9, dtype=torch.int8), torch.ones(2, 1), "3 or 4 axes"),
        (torch.zeros(2, 3, 3, dtype=torch.int8), torch.ones(2, 2), "blocks a divisor of 9"),
    ],
)
def test_nibbles_of_wrong_sizes(integers, scale, match):
    with pytest.raises(ValueError, match=match):
        Int4Kernel(integers, scale)

"""Which convolutions can be converted, and the patches that they see.

See docs/decisions/0073-conversion-of-convolutions.md.
"""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor, nn

from panther.nn.padding import pad_fully

Convolution = nn.Conv1d | nn.Conv2d
# positions sampled per call: enough for the moments, and memory does not grow with the images
MOST_PATCHES, MOST_ENTRIES = 4096, 2**22
# entries of a patch, whose covariance takes 2 GiB
WIDEST_PATCH = 1 << 14


def is_convolution(module: nn.Module) -> TypeGuard[Convolution]:
    """Whether it is an nn.Conv1d or nn.Conv2d; transposed convolutions and those in 3-D are not."""
    return isinstance(module, nn.Conv1d | nn.Conv2d)


def reason_of_convolution(conv: Convolution) -> str | None:
    """Why a convolution stays dense, or None; `reason_not_factored` checks its groups and patches."""
    kind = type(conv).__name__
    dense = nn.Conv2d if isinstance(conv, nn.Conv2d) else nn.Conv1d
    own = type(conv).forward is not dense.forward or type(conv)._conv_forward is not dense._conv_forward
    if own or {"forward", "_conv_forward"} & conv.__dict__.keys():
        return f"{kind} does more than nn.{dense.__name__} in its forward"
    return None


def reason_not_factored(conv: Convolution) -> str | None:
    """Why a convolution gets no low rank, or None; its weight can still be stored in fewer bits."""
    if conv.groups > 1 and conv.groups == conv.in_channels:
        return (
            "depthwise: each channel has its own kernel, and there is no rank across channels to cut; "
            "compress and quantize_ store it in fewer bits"
        )
    dense = nn.Conv2d if isinstance(conv, nn.Conv2d) else nn.Conv1d
    if conv.groups > 1:
        channels = conv.in_channels // conv.groups
        return (
            f"grouped: each of its {conv.groups} groups is a small convolution of {channels} channels; "
            f"{dense.__name__.replace('Conv', 'SKConv')}.from_conv converts one by hand, and "
            "compress and quantize_ store it in fewer bits"
        )
    dense = nn.Conv2d if isinstance(conv, nn.Conv2d) else nn.Conv1d
    entries = patch_entries(conv)
    if entries > WIDEST_PATCH:
        return (
            f"wide: its patches have {entries:,} entries, and the covariance of more than {WIDEST_PATCH:,} takes over "
            f"2 GiB; {dense.__name__.replace('Conv', 'SKConv')}.from_conv converts one by hand"
        )
    return None


def positions_of(conv: Convolution) -> int:
    """Number of positions of the kernel."""
    return math.prod(conv.kernel_size)


def patch_entries(conv: Convolution) -> int:
    """Entries of the patch that an output channel sees."""
    return conv.in_channels // conv.groups * positions_of(conv)


def rows_of_outputs(conv: Convolution, y: Tensor) -> Tensor:
    """(N, C_out, *spatial), or without N → (N·positions, C_out), a row for each position of the output."""
    batched = y if y.dim() == len(conv.kernel_size) + 2 else y.unsqueeze(0)
    return batched.movedim(1, -1).reshape(-1, batched.shape[1])


def sampled_patches(conv: Convolution, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The patches of some positions of the output, each as often as any other; all of them where they are few.

    Args:
        conv: of one group.
        x: its input.
        generator: of the sample, on the CPU.

    Returns:
        (n, C_in·positions of the kernel) in the order of the unfolded weight, and the rows of `rows_of_outputs` (n,)
        that they belong to.
    """
    axes = len(conv.kernel_size)
    batched = x if x.dim() == axes + 2 else x.unsqueeze(0)
    windows = pad_fully(batched, conv)
    # a view: (N, C_in, *positions of the output, *kernel)
    for axis, (size, step, apart) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        windows = windows.unfold(2 + axis, apart * (size - 1) + 1, step)[..., ::apart]
    places = (windows.shape[0], *windows.shape[2 : 2 + axes])
    count = math.prod(places)
    most = max(1, min(MOST_PATCHES, MOST_ENTRIES // patch_entries(conv)))
    chosen = torch.arange(count) if count <= most else torch.randperm(count, generator=generator)[:most]
    chosen = chosen.to(x.device)
    where = torch.unravel_index(chosen, places)
    patches = windows.movedim(1, 1 + axes)[where]
    return patches.reshape(len(chosen), -1), chosen

"""Random changes to training rows that leave their class as it is."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Augment(Protocol):
    """Changes a batch of rows (N, features) at random, with the randomness of the generator."""

    def __call__(self, x: Tensor, /, generator: torch.Generator) -> Tensor:
        """Return rows of the same shape."""
        ...


SHIFT_PIXELS = 2.0
ROTATION_RAD = 0.2
SCALE = 0.15


def shift_turn_scale(x: Tensor, generator: torch.Generator, *, side: int) -> Tensor:
    """Move, turn and scale square images, each by different amounts, bilinearly, with zeros from outside.

    Args:
        x: (N, side·side), one flattened image a row.
        generator: where the amounts come from: up to SHIFT_PIXELS along each axis, ROTATION_RAD, and SCALE of the size,
            uniformly, either way.
        side: width and height in pixels.

    Returns:
        (N, side·side).
    """
    count = len(x)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    angle, scale = ROTATION_RAD * uniform(count), 1 + SCALE * uniform(count)
    affine = torch.empty(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale * torch.cos(angle)
    affine[:, 1, 0] = scale * torch.sin(angle)
    affine[:, 0, 1] = -affine[:, 1, 0]
    # grid_sample's unit is half an image
    affine[:, :, 2] = uniform(count, 2) * SHIFT_PIXELS / (side / 2)
    images = x.view(count, 1, side, side)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).flatten(1)

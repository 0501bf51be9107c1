"""Mixed precision of a forward pass, by autocast."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch

Precision = Literal["float32", "bfloat16", "float16"]


def check_precision(precision: str) -> Precision:
    """Refuse a precision that there is not.

    Raises:
        ValueError: it is none of these.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision ({precision!r}) must be 'float32', 'bfloat16' or 'float16'")
    return cast(Precision, precision)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; does nothing in float32."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Scale the loss where the precision is float16; do nothing elsewhere."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")

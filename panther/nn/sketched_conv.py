"""Sketched convolutions of any number of spatial axes.

See docs/decisions/0072-sketched-convolutions.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor, nn

from panther.counting import ParameterCount, conv_multiply_adds_per_position, count_conv_parameters
from panther.linalg.channels import Factors, Terms, closest_channels, scaled_factors
from panther.linalg.sketch import Sketch, draw_sketches, uniform_
from panther.nn import functional
from panther.nn.checks import (
    check_conv_kind,
    check_conv_padding,
    check_conv_weight,
    check_groups,
    check_options,
    check_sizes,
    per_axis,
    warn_if_conv_larger_than_dense,
)
from panther.nn.functional import ConvOptions, ConvTerms
from panther.nn.padding import padded

Axes = int | Sequence[int]


class SketchedConv(nn.Module):
    """Common base of `SKConv1d` and `SKConv2d`: all but the number of spatial axes."""

    axes: ClassVar[int]
    dense_type: ClassVar[type[nn.Conv1d | nn.Conv2d]]

    S1s: nn.Parameter | None
    S2s: nn.Parameter | None
    U1s: Tensor | None
    U2s: Tensor | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Axes,
        num_terms: int,
        low_rank: int,
        stride: Axes = 1,
        padding: Axes | str = 0,
        dilation: Axes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        terms: Terms = "both",
        sketch: Sketch = "sign",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
        check_sizes(**sizes, num_terms=num_terms, low_rank=low_rank)
        check_options(bias=bias, dtype=dtype, sketch=sketch, generator=generator)
        check_groups(in_channels, out_channels, groups)
        check_conv_kind(terms, get_args(Terms))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = per_axis("kernel_size", kernel_size, self.axes)
        self.stride = per_axis("stride", stride, self.axes)
        self.dilation = per_axis("dilation", dilation, self.axes)
        check_conv_padding(padding, padding_mode, self.stride)
        self.padding = padding if isinstance(padding, str) else per_axis("padding", padding, self.axes, least=0)
        self.groups = groups
        self.padding_mode = padding_mode
        self.num_terms = num_terms
        self.low_rank = low_rank
        self.terms: str = terms
        self.sketch: str = sketch
        count = self._count(bias=False)
        warn_if_conv_larger_than_dense(f"{type(self).__name__}({self._sizes()})", count.stored, count.dense)

        L1, L2, k = *self._terms_of_kinds(), low_rank
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        S1s = torch.empty(groups * L1 * k, in_channels // groups, *self.kernel_size, **options)
        S2s = torch.empty(out_channels, L2 * k, *self.kernel_size, **options)
        self.register_parameter("S1s", nn.Parameter(S1s) if L1 else None)
        self.register_parameter("S2s", nn.Parameter(S2s) if L2 else None)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels, **options)) if bias else None)
        self.register_buffer("U1s", torch.empty(L1, k, out_channels, **options) if L1 else None)
        self.register_buffer("U2s", torch.empty(L2, in_channels, k, **options) if L2 else None)
        self._sketch_drawn = False
        self.reset_parameters(generator)

    @classmethod
    def from_conv(cls, conv: nn.Conv1d | nn.Conv2d, num_terms: int, low_rank: int, *, terms: Terms = "output") -> Self:
        """Make the sketched convolution that is closest to a trained one in the Frobenius norm of the weight.

        With ``terms="output"``, the truncated SVD of rank 2Lk of the weight unfolded to (C_out, C_in·kernel), each
        group by itself: no other choice of the terms comes closer (Eckart and Young, 1936). With ``"input"``, that of
        the weight unfolded to (C_out·kernel, C_in). With ``"both"``, subspaces of Lk output and Lk input channels,
        chosen in turn, each for what the other leaves. `panther.sketch_` converts models, and fits layers to data.

        Args:
            conv: source of sizes, bias, dtype, device, training mode and requires_grad; it is not changed.
            num_terms: L.
            low_rank: k, for each group.
            terms: which kinds the layer has.

        Raises:
            TypeError: conv is not an nn.Conv2d (nn.Conv1d).
            ValueError: a size is below 1, the convolution is depthwise, or the weight holds values that are not finite
                or is on ``meta``.
        """
        if not isinstance(conv, cls.dense_type):
            raise TypeError(f"conv ({type(conv).__name__}) must be an nn.{cls.dense_type.__name__}")
        check_sizes(num_terms=num_terms, low_rank=low_rank)
        check_conv_kind(terms, get_args(Terms))
        check_conv_weight(conv.weight)
        layer = cls.like(conv, num_terms, low_rank, terms=terms)
        # (groups, C_out/groups, C_in/groups, positions of the kernel)
        W = functional.by_group(conv.weight.detach().double(), conv.groups).flatten(3)
        found = [closest_channels(group, terms, num_terms * low_rank) for group in W]
        layer._set_terms([up for up, _ in found], [down for _, down in found])
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(conv.bias)  # type: ignore[arg-type]
        return layer

    @classmethod
    def from_factors(
        cls,
        conv: nn.Conv1d | nn.Conv2d,
        up: Factors | None,
        down: Factors | None,
        num_terms: int,
        low_rank: int,
        *,
        bias: Tensor | None = None,
    ) -> Self:
        """Make a layer in the place of a convolution from a product of factors for each kind of terms.

        Args:
            conv: of one group; whose sizes, dtype, device, training mode and requires_grad the layer takes.
            up: (C_out, r) and (r, C_in·positions of the kernel): a convolution with the kernel, then a 1x1 one.
            down: (C_in, r) and (r, C_out·positions): a 1x1 convolution, then one with the kernel. Where both kinds are
                given, r is at most num_terms·low_rank, else twice that.
            num_terms: L.
            low_rank: k.
            bias: (C_out,) or None; is copied.
        """
        terms: Terms = "output" if down is None else "input" if up is None else "both"
        layer = cls.like(conv, num_terms, low_rank, terms=terms, bias=bias is not None)
        layer._set_terms([up], [down])
        if layer.bias is not None and bias is not None:
            with torch.no_grad():
                layer.bias.copy_(bias)
        return layer

    @classmethod
    def like(
        cls,
        conv: nn.Conv1d | nn.Conv2d,
        num_terms: int,
        low_rank: int,
        *,
        terms: Terms = "both",
        bias: bool | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Make a layer of the sizes, options, type and place of a convolution, whose terms have no values yet."""
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            num_terms,
            low_rank,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=conv.bias is not None if bias is None else bias,
            padding_mode=conv.padding_mode,
            device="meta",
            dtype=conv.weight.dtype,
            terms=terms,
            sketch="orthonormal",
        )
        place = conv.weight.device if device is None else torch.device(device)
        if place.type != "meta":
            layer = layer.to_empty(device=place)
        for S in (layer.S1s, layer.S2s):
            if S is not None:
                S.requires_grad_(conv.weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(conv.weight.requires_grad if conv.bias is None else conv.bias.requires_grad)
        layer._sketch_drawn = True
        return layer.train(conv.training)

    @property
    def weight(self) -> Tensor:
        """`dense_weight`, for modules that read the weight instead of calling the layer; computed at each access."""
        return self.dense_weight()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw S1s, S2s and bias again; U is drawn only if it has no values yet (a layer made on ``meta``).

        An entry of the whole weight has the variance σ²/(2L), σ² being that of an entry of S, as in `SKLinear`; a fresh
        nn.Conv2d has 1/(3·fan_in): S uniform within ±√(2L/fan_in).
        """
        if not self._sketch_drawn and not any(U.is_meta for U in (self.U1s, self.U2s) if U is not None):
            self._draw_sketch(generator)
        fan_in = self.in_channels // self.groups * math.prod(self.kernel_size)
        with torch.no_grad():
            for S in (self.S1s, self.S2s):
                if S is not None:
                    uniform_(S, math.sqrt(2 * self.num_terms / fan_in), generator)
            if self.bias is not None:
                uniform_(self.bias, 1 / math.sqrt(fan_in), generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (N, in_channels, *spatial), or without N, to (N, out_channels, *spatial).

        Raises:
            ValueError: x has another number of axes or of channels.
        """
        if isinstance(x, Tensor):
            self._check_input(x)
        x, padding = padded(x, self)
        options = ConvOptions(self.stride, padding, self.dilation, self.groups)
        return functional.sketched_conv(x, self.all_terms(), self.bias, self.num_terms, options)

    def all_terms(self) -> ConvTerms:
        """The four terms; those of a kind that the layer does not have are None."""
        return ConvTerms(self.S1s, self.U1s, self.U2s, self.S2s)

    def dense_weight(self) -> Tensor:
        """The weight of the nn.Conv2d that computes the same, (C_out, C_in/groups, *kernel); gradients flow through."""
        return functional.conv_weight(self.all_terms(), self.num_terms, self.groups)

    def to_conv(self) -> nn.Conv1d | nn.Conv2d:
        """A new nn.Conv2d (nn.Conv1d) that computes the same, of the same dtype, device and training mode."""
        W = self.dense_weight().detach().contiguous()
        conv = self.dense_type(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,  # type: ignore[arg-type]
            device="meta",
            dtype=W.dtype,
        )
        conv.weight = nn.Parameter(W)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone())
        return conv.train(self.training)

    def ranks(self) -> tuple[int, int]:
        """The channels of a group between the two convolutions: after S1s, and after U2s."""
        L1, L2 = self._terms_of_kinds()
        return L1 * self.low_rank, L2 * self.low_rank

    def parameter_count(self) -> ParameterCount:
        """Dense, learnable and fixed parameters of this layer."""
        return self._count(bias=self.bias is not None)

    def multiply_adds_per_position(self) -> tuple[int, int]:
        """Multiply-adds for one position of the output, borders left out: of this layer, and of its dense twin."""
        channels, positions = (self.in_channels, self.out_channels), math.prod(self.kernel_size)
        ours = conv_multiply_adds_per_position(channels, positions, self.ranks(), math.prod(self.stride))
        return ours, self.in_channels // self.groups * self.out_channels * positions

    def extra_repr(self) -> str:
        """The sizes, as in the repr of nn.Conv2d."""
        sketch = "" if self.sketch == "sign" else f", sketch={self.sketch!r}"
        return f"{self._sizes()}, bias={self.bias is not None}{sketch}"

    def _sizes(self) -> str:
        """Arguments of the constructor as text, without those that have their default."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, num_terms={self.num_terms}, "
            f"low_rank={self.low_rank}, stride={self.stride}"
        )
        defaults = {"padding": (0,) * self.axes, "dilation": (1,) * self.axes, "groups": 1, "padding_mode": "zeros"}
        for name, default in {**defaults, "terms": "both"}.items():
            value = getattr(self, name)
            text += "" if value == default else f", {name}={value!r}"
        return text

    def _count(self, *, bias: bool) -> ParameterCount:
        channels, positions = (self.in_channels, self.out_channels), math.prod(self.kernel_size)
        return count_conv_parameters(channels, positions, self.ranks(), groups=self.groups, bias=bias)

    def _terms_of_kinds(self) -> tuple[int, int]:
        both = {"both": (1, 1), "output": (2, 0), "input": (0, 2)}[self.terms]
        return both[0] * self.num_terms, both[1] * self.num_terms

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in (self.axes + 1, self.axes + 2) or x.shape[-self.axes - 1] != self.in_channels:
            spatial = "height, width" if self.axes == 2 else "length"
            raise ValueError(
                f"x of shape {tuple(x.shape)} must be (batch, in_channels, {spatial}) with in_channels "
                f"{self.in_channels}, or without the batch"
            )

    def _draw_sketch(self, generator: torch.Generator | None) -> None:
        """Put new matrices into U1s and U2s, each group's by itself."""
        sides = ((self.U1s, self.out_channels, 1), (self.U2s, self.in_channels, 0))
        for U, channels, transposed in sides:
            if U is None:
                continue
            drawn = [
                draw_sketches(
                    self.sketch,  # type: ignore[arg-type]
                    channels // self.groups,
                    len(U),
                    self.low_rank,
                    generator=generator,
                    dtype=U.dtype,
                    device=U.device,
                )
                for _ in range(self.groups)
            ]
            whole = torch.cat(drawn, dim=1)
            U.copy_(whole.transpose(1, 2) if transposed else whole)
        self._sketch_drawn = True

    def _set_terms(self, ups: Sequence[Factors | None], downs: Sequence[Factors | None]) -> None:
        """Take the terms from factors, those of each group, U as a basis scaled like the "orthonormal" sketches.

        Args:
            ups: (C_out/groups, r) and (r, C_in/groups·kernel).
            downs: (C_in/groups, r) and (r, C_out/groups·kernel), the entries of an output channel together.
        """
        after_S1, after_U2 = self.ranks()
        L, k = self.num_terms, self.low_rank
        S1, U1 = scaled_factors(ups, after_S1, L, k)
        S2, U2 = scaled_factors(downs, after_U2, L, k)
        with torch.no_grad():
            if self.S1s is not None and self.U1s is not None:
                self.S1s.copy_(torch.cat(S1).view(self.S1s.shape))
                # (C_out, 2Lk) → (2L, k, C_out)
                self.U1s.copy_(torch.cat(U1).t().reshape(self.U1s.shape))
            if self.S2s is not None and self.U2s is not None:
                second = [S.view(after_U2, -1, *self.kernel_size).transpose(0, 1) for S in S2]
                self.S2s.copy_(torch.cat(second))
                self.U2s.copy_(torch.cat(U2).view(self.in_channels, -1, k).transpose(0, 1))
        self._sketch_drawn = True

    def _loaded(self) -> None:
        """Finish loading after a loader has set parameters and buffers one by one."""
        self._sketch_drawn = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        wanted = [name for name in ("U1s", "U2s") if self._buffers.get(name) is not None]
        self._sketch_drawn |= all(f"{prefix}{name}" in state_dict for name in wanted)

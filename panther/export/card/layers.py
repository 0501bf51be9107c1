"""Card entries of layers: sketched, quantized, convolutions and embeddings, with their counts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Parameters:
    """Parameter counts, as in `panther.efficiency.ParameterCount`."""

    dense: int
    learnable: int
    fixed: int


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds for one row through a layer: of the dense layer, and of the graph that was written."""

    dense: int
    planned: int


@dataclass(frozen=True)
class Layer:
    """One sketched layer of the model.

    Attributes:
        plan: "two_products", "dense", or "merged": computed together with the layer that `merged_into` names, which
            has all the multiply-adds.
        uses: names of the modules that share its matrices, where there are several.
        biases: how many biases they have, where there are several.
        note: further remark.
    """

    name: str
    in_features: int
    out_features: int
    num_terms: int
    low_rank: int
    bias: bool
    sketch: str
    plan: str
    parameters: Parameters
    multiply_adds_per_row: MultiplyAdds
    merged_into: str | None = None
    uses: tuple[str, ...] | None = None
    biases: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized layer.

    Attributes:
        kind: "linear", "embedding" or "convolution".
        in_features, out_features: of an embedding its rows and their width, of a convolution the entries of a patch
            and its output channels.
        scheme: "int8-static": weights with a scale an output channel, activations with one constant scale a tensor;
            "int4-blocks", "int8-blocks": a scale and a zero point for each block of a row;
            "int8-rows": an embedding with a scale a row;
            "int8-stored": weights with a scale an output channel, which are unpacked to floats when the file is loaded;
            "int4-stored": the same with a scale for each block of an output channel.
        smoothed: whether outliers of its input were moved into the weight.
        weight_bytes: of the weight, its scales and zero points, and the smoothing.
        block_size: entries in a block, where there are blocks.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    scheme: str
    smoothed: bool
    weight_bytes: int
    block_size: int | None = None


@dataclass(frozen=True)
class ConvolutionShape:
    """Sizes of a convolution; one number for each spatial axis."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Convolution:
    """One sketched convolution of the model.

    Attributes:
        terms: "output": a convolution with the kernel, then a 1x1 one; "input": the other way round; "both": terms of
            both kinds.
        plan: "two_products": the convolutions of its terms; "dense": one convolution.
        reason: of the plan, in a few words.
        weight_bytes: of the weights that it convolves by, resident.
        multiply_adds_per_position: of the output.
        median_us: for each plan that was measured, a time for each batch size.
    """

    name: str
    shape: ConvolutionShape
    num_terms: int
    low_rank: int
    terms: str
    bias: bool
    sketch: str
    plan: str
    reason: str
    weight_bytes: int
    parameters: Parameters
    multiply_adds_per_position: MultiplyAdds
    median_us: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedding:
    """One embedding of low rank: a table of rank columns that is looked up, and a product behind it.

    Attributes:
        mode: "lookup", or "sum" or "mean" for a bag.
        multiply_adds_per_row: multiply-adds per lookup or bag (0 for a dense table), plus those per row of each head.
        uses: names of the modules that share its factors, if there are several.
        heads: names of the linear layers among them.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    rank: int
    mode: str
    parameters: Parameters
    multiply_adds_per_row: MultiplyAdds
    uses: tuple[str, ...] | None = None
    heads: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Totals:
    """Parameter counts of each kind of layers together, the sketched linear layers first, and of the whole model."""

    sketched_layers: Parameters
    model: Parameters
    convolutions: Parameters | None = None
    embeddings: Parameters | None = None

"""The input and output tensors of a graph."""

from collections.abc import Sequence
from typing import Protocol

from app.runtime.tensors import TensorSpec


class Signature:
    """Inputs and outputs of a graph.

    Attributes:
        inputs, outputs: In the order of the graph.
        optional_inputs: Inputs that have a default in the file, which a request may replace.
        input_by_name, output_by_name: The tensors by name, including optional inputs.
        output_names: In the order of the graph.
        fixed_rows: Whether all dimensions of the inputs after the first are fixed.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], optional_inputs: Sequence[TensorSpec] = ()
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.optional_inputs = tuple(optional_inputs)
        self.input_by_name = {spec.name: spec for spec in (*inputs, *optional_inputs)}
        self.output_by_name = {spec.name: spec for spec in outputs}
        self.output_names = tuple(self.output_by_name)
        self.fixed_rows = all(None not in spec.shape[1:] for spec in inputs)


class HasSignature(Protocol):
    """A model with a signature, whose parts are also properties of the model; the request path reads the signature."""

    signature: Signature

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs in the order of the graph."""
        return self.signature.inputs

    @property
    def optional_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that a request may omit, because the file has defaults for them."""
        return self.signature.optional_inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs in the order of the graph."""
        return self.signature.outputs

    @property
    def input_by_name(self) -> dict[str, TensorSpec]:
        """Inputs by name, including optional ones."""
        return self.signature.input_by_name

    @property
    def output_by_name(self) -> dict[str, TensorSpec]:
        """Outputs by name."""
        return self.signature.output_by_name

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs in the order of the graph."""
        return self.signature.output_names

    @property
    def fixed_rows(self) -> bool:
        """Whether all dimensions of the inputs after the first are fixed."""
        return self.signature.fixed_rows

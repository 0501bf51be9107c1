"""The response of ``/models``: every model with its state, versions, inputs and outputs."""

from typing import Any

from pydantic import BaseModel

from app.reports.savings import LatencyStats, reduction_percent
from app.repository.repository import Repository
from app.repository.versions import Entry, State
from app.runtime.model import OnnxModel
from app.runtime.tensors import TensorSpec


def model_summary(repository: Repository, entry: Entry, default: str | None) -> dict[str, Any]:
    """Describe one model.

    Args:
        repository: The repository of the served version.
        entry: The model.
        default: Name of the model for requests without a name.
    """
    summary: dict[str, Any] = {
        "name": entry.name,
        "version": entry.served,
        "default": entry.name == default,
        "state": State.READY if entry.served else State.UNAVAILABLE,
        "reason": None if entry.served else entry.reason,
        "versions": [
            {"version": item.version, "state": item.state, "reason": item.reason or None}
            for item in entry.versions.values()
        ],
    }
    if entry.served is None:
        return summary
    model = repository.get(entry.name).model
    card = model.card
    inputs = {item.name: item for item in card.inputs} if card else {}
    outputs = {item.name: item for item in card.outputs} if card else {}
    if model.labelled is not None:  # a scikit-learn classifier has labels without a card
        outputs[model.labelled.name] = model.labelled
    return {
        **summary,
        "provider": model.provider,
        "savings": _savings(model),
        "description": card.description if card else None,
        "preprocessing": card.preprocessing if card else None,
        "inputs": [
            _tensor(spec, inputs.get(spec.name), "description", "columns", "sample_rows") for spec in model.inputs
        ],
        "outputs": [
            _tensor(spec, outputs.get(spec.name), "description", "kind", "labels", "unit") for spec in model.outputs
        ],
    }


def _savings(model: OnnxModel) -> dict[str, Any]:
    """File size and latency compared with the dense twin; None without a measurement in the card."""
    twin = model.card.dense_twin.weight_bytes if model.card else None
    latency = LatencyStats.of(model.card.latency) if model.card else None
    return {
        "file_bytes": model.file_bytes,
        "bytes_reduction_percent": None if twin is None else reduction_percent(twin, model.file_bytes),
        "ratio_to_dense_twin": latency.ratio_to_dense_twin[0] if latency and latency.ratio_to_dense_twin else None,
    }


def _tensor(spec: TensorSpec, described: object, *fields: str) -> dict[str, Any]:
    """A tensor with its fields from the card, None without a card."""
    tensor = {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}
    return tensor | {name: _plain(getattr(described, name, None)) for name in fields}


def _plain(value: object) -> object:
    """Parts of the card as dicts."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    return [_plain(item) for item in value] if isinstance(value, list) else value

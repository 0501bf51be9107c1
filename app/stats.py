"""``/stats``: what was saved and at what price, and the live figures. What is not known is null, never 0."""

from typing import Any

import onnxruntime as ort

from app.card import Card, Latency, Parameters
from app.histogram import BOUNDS_NS, Histogram
from app.model import Model
from app.placement import placement_report
from app.repository import Repository
from app.serving import Serving
from app.statistics import Duration, Statistics
from app.versions import Entry, Version

PERCENTILES = (50, 90, 99)


def reduction_percent(dense: int, stored: int) -> float | None:
    """How much smaller than dense, in percent; below 0 where it is larger."""
    return None if dense == 0 else round(100 * (1 - stored / dense), 2)


def parameter_report(counts: Parameters) -> dict[str, Any]:
    """The three counts, and the reduction by each way of counting, named apart."""
    both = counts.learnable + counts.fixed
    return {
        "dense": counts.dense,
        "learnable": counts.learnable,
        "fixed": counts.fixed,
        "learnable_and_fixed": both,
        "reduction_percent": {
            "learnable": reduction_percent(counts.dense, counts.learnable),
            "learnable_and_fixed": reduction_percent(counts.dense, both),
        },
    }


def savings_report(model: Model) -> dict[str, Any]:
    """What the card says of a model, with the reductions worked out; nulls for a model without a card."""
    card = model.card
    if card is None:
        return {"layers": None, "totals": None, "multiply_adds_per_row": None}
    layers = [
        {
            "name": layer.name,
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "num_terms": layer.num_terms,
            "low_rank": layer.low_rank,
            "bias": layer.bias,
            "sketch": layer.sketch,
            "plan": layer.plan,
            "merged_into": layer.merged_into,
            "parameters": parameter_report(layer.parameters),
            "multiply_adds_per_row": layer.multiply_adds_per_row.model_dump(),
        }
        for layer in card.layers
    ]
    totals = {
        "sketched_layers": parameter_report(card.totals.sketched_layers),
        "model": parameter_report(card.totals.model),
    }
    dense = sum(layer.multiply_adds_per_row.dense for layer in card.layers)
    planned = sum(layer.multiply_adds_per_row.planned for layer in card.layers)
    adds = {"dense": dense, "planned": planned, "reduction_percent": reduction_percent(dense, planned)}
    return {"layers": layers, "totals": totals, "multiply_adds_per_row": adds}


def bytes_report(serving: Serving) -> dict[str, Any]:
    """Bytes on disk beside those of the dense twin's weights, and bytes in memory."""
    model = serving.model
    card = model.card
    twin = card.dense_twin.weight_bytes if card else None
    return {
        "file_bytes": model.file_bytes,
        "dense_twin_weight_bytes": twin,
        "reduction_percent": None if twin is None else reduction_percent(twin, model.file_bytes),
        "loaded_weight_bytes": card.storage.weight_bytes if card and card.storage else None,
        "resident_bytes": serving.resident_bytes,
    }


def latency_report(latency: Latency | None) -> dict[str, Any] | None:
    """The export's measurement, with the times as parts of the dense twin's: below 1 is quicker."""
    if latency is None:
        return None
    times = zip(latency.median_us, latency.dense_twin_median_us, strict=True)
    return {**latency.model_dump(), "ratio_to_dense_twin": [round(ours / twin, 3) for ours, twin in times]}


def _mean_ms(duration: Duration | Histogram) -> float | None:
    return round(duration.ns / duration.count / 1e6, 4) if duration.count else None


def percentiles_ms(histogram: Histogram) -> dict[str, float | None]:
    """The usual percentiles in milliseconds, null before the first request."""
    found = {f"p{percent}": histogram.quantile_ns(percent / 100) for percent in PERCENTILES}
    return {name: None if ns is None else round(ns / 1e6, 4) for name, ns in found.items()}


def histogram_report(histogram: Histogram) -> dict[str, Any]:
    """Counts of the buckets that are not empty, each with its upper bound; the last bound is null for no bound."""
    filled = histogram.filled()
    return {
        "total_ms": histogram.ns / 1e6,
        "upper_bounds_ms": [BOUNDS_NS[index] / 1e6 if index < len(BOUNDS_NS) else None for index, _ in filled],
        "counts": [count for _, count in filled],
    }


def live_report(statistics: Statistics, depth: int, *, histograms: bool = False) -> dict[str, Any]:
    """Requests since the start; times are in milliseconds, null before the first."""
    spread = {"request": statistics.success, "queue": statistics.queue, "compute_infer": statistics.compute_infer}
    report: dict[str, Any] = {
        "requests": statistics.success.count + statistics.fail.count,
        "succeeded": statistics.success.count,
        "failed": statistics.fail.count,
        "failures_by_reason": dict(statistics.failures),
        "waiting": depth,
        "rows": statistics.rows,
        "executions": statistics.executions,
        "executed_rows": statistics.executed_rows,
        "mean_batch_rows": round(statistics.executed_rows / statistics.executions, 2)
        if statistics.executions
        else None,
        "mean_request_ms": _mean_ms(statistics.success),
        "mean_queue_ms": _mean_ms(statistics.queue),
        "mean_compute_input_ms": _mean_ms(statistics.compute_input),
        "mean_compute_infer_ms": _mean_ms(statistics.compute_infer),
        "mean_compute_output_ms": _mean_ms(statistics.compute_output),
        "percentiles_ms": {name: percentiles_ms(histogram) for name, histogram in spread.items()},
        "last_inference_ms": statistics.last_inference_ms or None,
    }
    if histograms:
        report["histograms"] = {name: histogram_report(histogram) for name, histogram in spread.items()}
    return report


def _card_fields(card: Card | None) -> dict[str, Any]:
    if card is None:
        names = ("schema_version", "created_at", "check", "storage", "latency", "training", "versions")
        return dict.fromkeys(names)
    return {
        "schema_version": card.schema_version,
        "created_at": card.created_at,
        "check": card.check.model_dump(),
        "storage": card.storage.model_dump() if card.storage else None,
        "latency": latency_report(card.latency),
        "training": card.training.model_dump() if card.training else None,
        "versions": card.versions,
    }


def cuda_report(model: Model) -> dict[str, Any] | None:
    """How the model runs on CUDA; None elsewhere."""
    found = model.cuda
    if found is None:
        return None
    return {
        "device_id": found.device_id,
        "mode": found.mode,
        "reason": found.reason,
        "batch_sizes": None if found.batch_sizes is None else list(found.batch_sizes),
        "padded_to": None if found.padded_to is None else list(found.padded_to),
        "buffer_bytes": found.buffer_bytes,
        "tf32": found.tf32,
        "tf32_max_relative_error": found.tf32_max_relative_error,
    }


def runtime_report(model: Model, *, nodes: bool = False) -> dict[str, Any]:
    """What the session really runs on, read back from it; with the nodes by name where asked for."""
    return {
        "provider": model.provider,
        "providers": model.providers,
        "device_reason": model.device_reason,
        "placement": placement_report(model.placement, by_name=nodes),
        "cuda": cuda_report(model),
        "num_threads": model.num_threads,
        "batched": model.batched,
        "load_duration_s": round(model.load_duration_s, 4),
        "onnxruntime": ort.__version__,
    }


def version_report(
    entry: Entry,
    version: Version,
    statistics: Statistics | None,
    depth: int = 0,
    *,
    histograms: bool = False,
    nodes: bool = False,
) -> dict[str, Any]:
    """All that is to be said of one version of a model.

    Args:
        entry, version: of the repository.
        statistics: over all workers; by default those of this one.
        depth: requests that wait, over all workers.
        histograms: also give the spread of the times.
        nodes: also name the nodes that each provider runs.
    """
    head: dict[str, Any] = {
        "name": entry.name,
        "version": version.version,
        "served_by_default": version.version == entry.served,
        "state": version.state,
        "reason": version.reason or None,
    }
    serving = version.serving
    if serving is None:
        return head
    model = serving.model
    return {
        **head,
        "has_card": model.card is not None,
        "card_problem": model.card_problem,
        **savings_report(model),
        "bytes": bytes_report(serving),
        **_card_fields(model.card),
        "runtime": runtime_report(model, nodes=nodes),
        "loaded_at_s": version.loaded_at,
        "live": live_report(statistics or serving.batcher.statistics, depth, histograms=histograms),
    }


def model_summary(repository: Repository, entry: Entry, default: str | None) -> dict[str, Any]:
    """A model as ``/models`` lists it."""
    summary: dict[str, Any] = {
        "name": entry.name,
        "version": entry.served,
        "default": entry.name == default,
        "state": "READY" if entry.served else "UNAVAILABLE",
        "reason": None if entry.served else entry.reason,
        "versions": [
            {"version": item.version, "state": item.state, "reason": item.reason or None}
            for item in entry.versions.values()
        ],
    }
    if entry.served is None:
        return summary
    model = repository.get(entry.name).model
    summary["provider"] = model.provider
    card = model.card
    inputs = {item.name: item.description for item in card.inputs} if card else {}
    outputs = {item.name: item for item in card.outputs} if card else {}
    summary["description"] = card.description if card else None
    summary["preprocessing"] = card.preprocessing if card else None
    summary["inputs"] = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": spec.wire_shape,
            "description": inputs.get(spec.name),
        }
        for spec in model.inputs
    ]
    summary["outputs"] = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": spec.wire_shape,
            "description": outputs[spec.name].description if spec.name in outputs else None,
            "kind": outputs[spec.name].kind if spec.name in outputs else None,
            "labels": outputs[spec.name].labels if spec.name in outputs else None,
        }
        for spec in model.outputs
    ]
    return summary

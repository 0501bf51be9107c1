"""Inspection of an ONNX file of any origin: card, sizes, and the graph that onnxruntime runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from panther.export.card import CARD_KEY, SCHEMA_VERSION, curve_table, read_card
from panther.export.errors import ExportError
from panther.export.ort import Target, optimized_graph
from panther.export.row_proof import row_proof

# above this number of nodes, only counts by operator are printed
_MOST_NODES = 40
_PLAN_NAMES = {"two_products": "x·A·B", "dense": "x·W"}


def inspect_file(path: str | Path, *, num_threads: int = 1) -> dict[str, Any]:
    """Describe a file as plain JSON.

    Args:
        path: of an ONNX file; its external data, if any, lies beside it.
        num_threads: to load it with.

    Returns:
        path; file_bytes, external data included; weight_bytes, as stored; opset; inputs; outputs; operators: how many
        of each are in the file; optimized_operators: the same for the graph that onnxruntime runs on the CPU, and
        optimized_nodes: its nodes in order, with the shapes of their constants; both None, and runtime_error says why,
        where the file can't be loaded; batching: whether a server runs rows of several requests together, see
        ``row_proof``; card, None where the file has none.

    Raises:
        ExportError: the file can't be read, is no ONNX model, or has a card of a newer major version.
    """
    path = Path(path)
    try:
        proto = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise ExportError(f"{path} does not exist") from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ExportError(f"{path} is not an ONNX model: {error}") from error
    if not proto.graph.output:
        raise ExportError(f"{path} is not an ONNX model: its graph has no output")
    result: dict[str, Any] = {
        "path": str(path),
        "file_bytes": path.stat().st_size + sum(file.stat().st_size for file in _external_files(path, proto)),
        "weight_bytes": sum(_tensor_bytes(tensor) for tensor in proto.graph.initializer),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "inputs": [_value(value) for value in proto.graph.input],
        "outputs": [_value(value) for value in proto.graph.output],
        "operators": _operators(proto.graph),
        "optimized_operators": None,
        "optimized_nodes": None,
        "runtime_error": None,
        "batching": row_proof(path),
        "card": _card(path, proto),
    }
    try:
        optimized = optimized_graph(path, Target("cpu", num_threads)).graph
        result["optimized_operators"], result["optimized_nodes"] = _operators(optimized), _nodes(optimized)
    except ExportError as error:
        result["runtime_error"] = str(error)
    return result


def print_inspection(inspection: dict[str, Any], console: Console) -> None:
    """Print the result of `inspect_file`, for people.

    Raises:
        ExportError: the card lacks what every card has.
    """
    card = inspection["card"]
    try:
        parts: list[RenderableType] = [_summary(inspection)]
        if card is None:
            parts.append("no card: sketched layers, accuracy and the export's check are unknown")
        else:
            parts += [layer_table(card)] if card["layers"] else []
            parts += [convolution_table(card)] if card.get("convolutions") else []
            parts += [embedding_table(card)] if card.get("embeddings") else []
            parts += [curve_table(card["compression_curve"])] if card.get("compression_curve") else []
            parts += card_lines(card)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ExportError(f"{inspection['path']}: its card does not follow the schema: {error!r}") from error
    for part in parts:
        console.print(part, highlight=False, soft_wrap=True)


def layer_table(card: dict[str, Any]) -> Table:
    """The sketched layers of a card, their sum, and the whole model.

    Each count of parameters stands beside what it saves of dense; ``adds`` are the multiply-adds for a row, of dense's.
    """
    caption = "dense, learnable, +fixed: parameters; saved: of dense; adds: multiply-adds a row, of dense's"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
    for heading in ("layer", "shape", "L·k", "plan"):
        table.add_column(heading)
    for heading in ("dense", "learnable", "saved", "+fixed", "saved", "adds"):
        table.add_column(heading, justify="right")
    for layer in card["layers"]:
        adds = layer["multiply_adds_per_row"]
        table.add_row(
            layer["name"],
            f"{layer['in_features']}→{layer['out_features']}",
            f"{layer['num_terms']}·{layer['low_rank']}",
            _PLAN_NAMES.get(layer["plan"], layer["plan"]),
            *_counts(layer["parameters"]),
            f"{adds['planned'] / adds['dense']:.0%}",
        )
    table.add_section()
    adds = [layer["multiply_adds_per_row"] for layer in card["layers"]]
    share = sum(entry["planned"] for entry in adds) / sum(entry["dense"] for entry in adds)
    table.add_row("sum", "", "", "", *_counts(card["totals"]["sketched_layers"]), f"{share:.0%}")
    table.add_row("model", "", "", "", *_counts(card["totals"]["model"]), "")
    return table


def convolution_table(card: dict[str, Any]) -> Table:
    """The sketched convolutions of a card, and their sum, as `layer_table`; ``adds`` are for one output position."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("convolution", "shape", "L·k", "terms", "plan"):
        table.add_column(heading)
    for heading in ("dense", "learnable", "saved", "+fixed", "saved", "adds"):
        table.add_column(heading, justify="right")
    for layer in card["convolutions"]:
        shape, adds = layer["shape"], layer["multiply_adds_per_position"]
        table.add_row(
            layer["name"],
            f"{shape['in_channels']}→{shape['out_channels']}, {'x'.join(map(str, shape['kernel_size']))}",
            f"{layer['num_terms']}·{layer['low_rank']}",
            layer["terms"],
            _PLAN_NAMES.get(layer["plan"], layer["plan"]),
            *_counts(layer["parameters"]),
            f"{adds['planned'] / adds['dense']:.0%}",
        )
    table.add_section()
    table.add_row("sum", "", "", "", "", *_counts(card["totals"]["convolutions"]), "")
    if not card["layers"]:
        table.add_row("model", "", "", "", "", *_counts(card["totals"]["model"]), "")
    return table


def embedding_table(card: dict[str, Any]) -> Table:
    """The embeddings of low rank of a card, and their sum, as `layer_table`; ``adds`` are those of a row or a bag."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("embedding", "shape", "rank", "mode"):
        table.add_column(heading)
    for heading in ("dense", "learnable", "saved", "+fixed", "saved", "adds"):
        table.add_column(heading, justify="right")
    for layer in card["embeddings"]:
        shape = f"{layer['num_embeddings']}→{layer['embedding_dim']}"
        adds = f"{layer['multiply_adds_per_row']['planned']:,}"
        table.add_row(layer["name"], shape, str(layer["rank"]), layer["mode"], *_counts(layer["parameters"]), adds)
    table.add_section()
    table.add_row("sum", "", "", "", *_counts(card["totals"]["embeddings"]), "")
    if not card["layers"] and not card.get("convolutions"):
        table.add_row("model", "", "", "", *_counts(card["totals"]["model"]), "")
    return table


def measured_table(card: dict[str, Any], file_bytes: int) -> Table:
    """Counts and measurements of a card, with units and conditions."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("measured")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("with")
    twin, storage, check = card["dense_twin"]["weight_bytes"], card["storage"], card["check"]
    saved = f", {1 - file_bytes / twin:.1%} less than the dense twin's weights" if twin > file_bytes else ""
    table.add_row("file", f"{file_bytes:,}", "bytes", f"the file system, external data included{saved}")
    table.add_row("weights in memory", f"{storage['weight_bytes']:,}", "bytes", "constants of the graph that runs")
    by_type = storage.get("bytes_by_type") or {}
    for dtype, size in by_type.items() if card.get("quantized_layers") else ():
        table.add_row(f"… {dtype}", f"{size:,}", "bytes", "the same, by type")
    table.add_row("weights of the dense twin", f"{twin:,}", "bytes", "its parameters at the precision of the file")
    compared = f"{check['runtime']} against {check['reference']}, {check['rows']} rows"
    for entry in check["outputs"]:
        for what in ("max", "mean"):
            kind = {"max": "largest", "mean": "mean"}[what]
            table.add_row(
                f"{kind} error of {entry['name']!r}",
                f"{entry[f'{what}_relative_error']:.1e}",
                "of its largest value",
                compared if what == "max" else "",
            )
    if check.get("left_out"):
        table.add_row("not compared", f"{check['left_out']:,}", "values", "rows that a mask hides altogether")
    latency = card.get("latency")
    if latency:
        threads = f", {latency['num_threads']} threads" if latency["device"] == "cpu" else ""
        target = f"{card['planning']['runtime']} on {latency['device']}{threads}, median"
        for size, ours, theirs in zip(
            latency["batch_sizes"], latency["median_us"], latency["dense_twin_median_us"], strict=True
        ):
            table.add_row(f"one run, batch {size}", f"{ours:,.1f}", "µs", target)
            table.add_row("… of its dense twin", f"{theirs:,.1f}", "µs", "the same, in turn")
    return table


def card_lines(card: dict[str, Any]) -> list[RenderableType]:
    """The rest of a card, a line each."""
    check = card["check"]
    lines = [
        f"made {card['created_at']} by "
        + ", ".join(f"{name} {version}" for name, version in card.get("versions", {}).items()),
        f"checked against {check['reference']} on {check['rows']} rows: largest difference "
        f"{check['max_relative_error']:.1e} of the largest output ({check['tolerance']:.0e} allowed), "
        f"mean {check['mean_relative_error']:.1e}, absolute at most {check['max_absolute_error']:.1e}",
    ]
    lines.extend(
        f"output {output['name']}: {', '.join(_reading(output))}" for output in card["outputs"] if _reading(output)
    )
    outputs = check.get("outputs", ())
    if len(outputs) > 1:
        errors = (f"{output['name']} {output['max_relative_error']:.1e}" for output in outputs)
        lines.append(f"largest difference of each output: {', '.join(errors)}")
    if check.get("left_out"):
        lines.append(f"{check['left_out']:,} values were not compared, in rows that a mask hides altogether")
    lines.extend(
        f"{layer['name']}: {', '.join([*_uses(layer), *([layer['note']] if 'note' in layer else [])])}"
        for layer in card["layers"]
        if "uses" in layer or "note" in layer
    )
    quantized = card.get("quantized_layers")
    if quantized:
        names = ", ".join(f"{layer['name']} ({layer['scheme']})" for layer in quantized)
        lines.append(f"in few bits, {sum(layer['weight_bytes'] for layer in quantized):,} bytes: {names}")
    lines.extend(f"note: {note}" for note in card.get("notes", ()))
    planning = card.get("planning") or {"sites": []}
    lines.extend(
        f"plan of {' + '.join(site['layers'])}: {_PLAN_NAMES.get(site['plan'], site['plan'])}, {site['reason']}"
        for site in planning["sites"]
    )
    latency = card.get("latency")
    if latency:
        cells = (
            f"batch {size}: {ours:,.0f} µs ({ours / twin:.2f}x of dense)"
            for size, ours, twin in zip(
                latency["batch_sizes"], latency["median_us"], latency["dense_twin_median_us"], strict=True
            )
        )
        lines.append(f"one run on {latency['device']}, {latency['num_threads']} threads: {'; '.join(cells)}")
    training = card.get("training") or {}
    told = [
        f"{key.replace('_', ' ')} {training[key]:,}"
        for key in ("train_rows", "test_rows", "epochs", "seed")
        if key in training
    ]
    if training.get("dataset"):
        seconds = [f"{training['duration_s']:g} s"] if "duration_s" in training else []
        lines.append(f"data: {training['dataset']}; {', '.join(told + seconds)}")
    for whose, metrics in (("trained", training.get("metrics")), ("dense twin", training.get("dense_twin_metrics"))):
        if metrics:
            lines.append(f"{whose}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    return [Text(line) for line in lines]


def _reading(output: dict[str, Any]) -> list[str]:
    """How to read an output, in words; empty where the card does not say."""
    labels = output.get("labels") or ()
    return [
        *([output["kind"]] if output.get("kind") else []),
        *([f"{len(labels)} labels"] if labels else []),
        *([f"in {output['unit']}"] if output.get("unit") else []),
    ]


def _uses(layer: dict[str, Any]) -> list[str]:
    """Which modules share a layer's matrices, in words; empty where it is one."""
    return [f"shared by {', '.join(layer['uses'])}"] if layer.get("uses") else []


def _summary(inspection: dict[str, Any]) -> Group:
    card = inspection["card"]
    lines = [f"{inspection['path']}: {inspection['file_bytes']:,} bytes, {inspection['weight_bytes']:,} of weights"]
    if card is not None:
        storage = card.get("storage") or {}
        resident = f", {storage['weight_bytes']:,} of weights when loaded" if storage else ""
        twin = card["dense_twin"]["weight_bytes"]
        saved = f"; the file saves {1 - inspection['file_bytes'] / twin:.1%} of that" if twin else ""
        lines.append(f"model {card['name']!r}{resident}; weights of the dense twin {twin:,} bytes{saved}")
    for kind in ("inputs", "outputs"):
        lines.extend(f"{kind[:-1]} {value['name']}: {value['datatype']}{value['shape']}" for value in inspection[kind])
    lines.append(_running_graph(inspection))
    if inspection["batching"] is not None:
        lines.append(_batching(inspection["batching"]))
    return Group(*(Text(line) for line in lines))


def _running_graph(inspection: dict[str, Any]) -> str:
    nodes = inspection["optimized_nodes"]
    if nodes is None:
        return f"cannot be loaded: {inspection['runtime_error']}"
    if len(nodes) > _MOST_NODES:
        counts = inspection["optimized_operators"].items()
        return f"runs as {len(nodes)} nodes: " + ", ".join(f"{count} {name}" for name, count in counts)
    matrices = (["x".join(map(str, shape)) for shape in node["constants"] if len(shape) > 1] for node in nodes)
    return "runs as " + " → ".join(
        " ".join([node["operator"], *shapes]) for node, shapes in zip(nodes, matrices, strict=True)
    )


def _batching(proof: dict[str, Any]) -> str:
    """Whether a server batches the file."""
    if proof["verdict"] == "independent":
        return "rows are proven independent: a server runs those of several requests together"
    deciding = f" ({proof['op_type']})" if proof["op_type"] else ""
    proven = "proven to depend on one another" if proof["verdict"] == "mixed" else "not proven independent"
    return f"rows are {proven}, a server does not batch them: {proof['reason']}{deciding}"


def _counts(parameters: dict[str, int]) -> list[str]:
    dense, learnable, fixed = (parameters[key] for key in ("dense", "learnable", "fixed"))
    return [
        f"{dense:,}",
        f"{learnable:,}",
        f"{1 - learnable / dense:.1%}" if dense else "",
        f"{learnable + fixed:,}",
        f"{1 - (learnable + fixed) / dense:.1%}" if dense else "",
    ]


def _card(path: Path, proto: onnx.ModelProto) -> dict[str, Any] | None:
    try:
        card = read_card(proto)
    except json.JSONDecodeError as error:
        raise ExportError(f"{path}: the metadata under {CARD_KEY!r} is not JSON: {error}") from error
    if card is None:
        return None
    version = str(card.get("schema_version", "")) if isinstance(card, dict) else ""
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise ExportError(f"{path}: its card has schema version {version!r}; this panther reads {SCHEMA_VERSION!r}")
    return card


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
    return {"name": value.name, "datatype": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), "shape": dims}


def _operators(graph: onnx.GraphProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in graph.node).most_common())


def _nodes(graph: onnx.GraphProto) -> list[dict[str, Any]]:
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return [
        {
            "operator": node.op_type,
            "name": node.name,
            "constants": [shapes[name] for name in node.input if name in shapes],
        }
        for node in graph.node
    ]


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * itemsize


def _external_files(path: Path, proto: onnx.ModelProto) -> list[Path]:
    names = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return [file for name in sorted(names) if (file := path.parent / name).is_file()]

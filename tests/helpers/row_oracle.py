"""Brute force: onnxruntime's results for single rows compared with those for a batch."""

import numpy as np
import onnxruntime as ort

ort.set_default_logger_severity(4)
_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(float16)": np.float16,
}  # fmt: skip


def open_session(model):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options)


def random_feeds(session, axes, rows, rng, sizes=None, high=2):
    """An input for each of the graph's; unknown sizes are taken by input name or dimension name, else 2."""
    sizes, feeds = sizes or {}, {}
    for spec in session.get_inputs():
        if spec.name not in axes:
            continue
        shape = [size if isinstance(size, int) else sizes.get((spec.name, axis), sizes.get(size, 2))
                 for axis, size in enumerate(spec.shape)]  # fmt: skip
        if axes[spec.name] is not None:
            shape[axes[spec.name]] = rows
        if spec.type == "tensor(string)":
            feeds[spec.name] = rng.choice(["a", "b c", "the dog", "a b c d"], shape).astype(object)
        elif _TYPES[spec.type] in {np.float32, np.float64, np.float16}:
            feeds[spec.name] = rng.standard_normal(shape).astype(_TYPES[spec.type])
        else:
            feeds[spec.name] = rng.integers(0, high, shape).astype(_TYPES[spec.type])
    return feeds


def cut(array, axis, start, stop):
    if axis is None:
        return array
    if isinstance(array, list):
        return array[start:stop]
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, stop)
    return array[tuple(index)]


def alike(left, right, tolerance):
    if isinstance(left, list):
        return left == right or all(
            one.keys() == other.keys() and np.allclose(list(one.values()), list(other.values()), atol=tolerance)
            for one, other in zip(left, right, strict=True)
        )
    left, right = np.asarray(left), np.asarray(right)
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.dtype.kind != "f":
        return np.array_equal(left, right)
    scale = max(1.0, float(np.abs(right[np.isfinite(right)]).max(initial=0)))
    return np.allclose(left.astype(float), right.astype(float), rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def difference(session, input_axes, output_axes, feeds, tolerance=1e-4):
    """The first output with a difference between single rows and the batch; None without a difference.

    Returns "alone" if a row cannot run separately.
    """
    rows = next(feeds[name].shape[axis] for name, axis in input_axes.items() if axis is not None)
    names = [spec.name for spec in session.get_outputs()]
    parts = [(row, row + 1) for row in range(rows)] + ([(0, 2)] if rows > 2 else [])
    alone = []
    for start, stop in parts:
        part = {name: cut(array, input_axes[name], start, stop) for name, array in feeds.items()}
        try:
            alone.append(session.run(None, part))
        except Exception:  # noqa: BLE001 - onnxruntime raises many kinds
            return "alone"
    try:
        together = session.run(None, feeds)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds
        return f"the batch fails: {error}"
    for name, whole, singles in zip(names, together, zip(*alone, strict=True), strict=True):
        axis = output_axes[name]
        if axis is not None and (len(whole) if isinstance(whole, list) else whole.shape[axis]) != rows:
            return f"{name} has a different number of rows"
        for (start, stop), single in zip(parts, singles, strict=True):
            if not alike(single, cut(whole, axis, start, stop), tolerance):
                return f"{name} differs in the rows {start}:{stop}"
    return None

"""A table of flowers, and the specs of its tensors."""

import numpy as np

from app.engine.codec.table import Table, TableColumn
from app.runtime.tensors import TensorSpec

DTYPES = {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_, "BYTES": np.object_}


def spec(name="x", datatype="FP32", shape=(None, 3)):
    return TensorSpec(name, datatype, np.dtype(DTYPES[datatype]), shape, (None,) * len(shape))


FLOWERS = Table(
    [
        TableColumn("length", "number", spec()),
        TableColumn("whole", "integer", spec()),
        TableColumn("colour", "category", spec(), ("red", "blue")),
    ],
    spec(),
)

"""Classical machine learning, domain ai.onnx.ml: trees, linear models, scalers, encoders, strings."""

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.elementwise import LEARNING, MICROSOFT
from app.runtime.independence.operators.reductions import inserted
from app.runtime.independence.sizes import Number
from app.runtime.independence.values import Maps, Tensor


def _matrix(call: Call, index: int = 0) -> Tensor:
    """An input that is a matrix with one line per row.

    Raises:
        Decision: The input is not a matrix, or its columns are the rows.
    """
    tensor = call.data(index)
    if tensor.batch is None:
        raise unproven("has an input without a batch axis")
    if tensor.rank == 1:
        raise mixes("treats the whole batch as the features of one row")
    if tensor.rank != 2:
        raise unproven(f"requires a matrix, but its input has rank {tensor.rank}")
    if tensor.batch.axis != 0:
        raise mixes("treats the batch axis as features")
    return tensor


@operator("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier", domain=LEARNING)
def classifier(call: Call) -> Result:
    """The label of each row, and the scores of all classes (of pairs of classes for support vectors)."""
    tensor = _matrix(call)
    labels = [
        len(found.strings()) if name.endswith("strings") else len(found.integers())
        for name in ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
        if (found := call.attribute(name)) is not None
    ]
    known = call.node.op_type != "SVMClassifier" and max(labels, default=0) > 1
    width: Number = max(labels) if known else call.algebra.fresh()
    return [call.make(tensor.sizes[:1], tensor.batch), call.make([tensor.sizes[0], width], tensor.batch)]


@operator("LinearRegressor", "SVMRegressor", "TreeEnsemble", "TreeEnsembleRegressor", domain=LEARNING)
def regressor(call: Call) -> Result:
    """The predicted numbers of each row."""
    tensor = _matrix(call)
    width: Number = call.algebra.fresh()
    if call.node.op_type in {"LinearRegressor", "TreeEnsembleRegressor"}:
        width = call.integer("targets" if call.node.op_type == "LinearRegressor" else "n_targets", 1)
    return call.make([tensor.sizes[0], width], tensor.batch)


@operator("Imputer", "Normalizer", "Scaler", domain=LEARNING)
def by_feature(call: Call) -> Result:
    """A matrix of the same shape, computed row by row."""
    tensor = _matrix(call)
    return call.make(tensor.sizes, tensor.batch)


@operator("OneHotEncoder", domain=LEARNING)
def one_hot_encoder(call: Call) -> Result:
    """One-hot encoding on a new last axis."""
    tensor = call.data(0)
    integers, strings = call.integers("cats_int64s"), call.attribute("cats_strings")
    width: Number = call.algebra.fresh()
    if integers:
        width = len(integers)
    elif strings is not None:
        width = len(strings.strings())
    return inserted(call, tensor, tensor.rank, width)


@operator("FeatureVectorizer", domain=LEARNING)
def feature_vectorizer(call: Call) -> Result:
    """Matrices concatenated by columns."""
    tensors = [_matrix(call, index) for index in range(len(call.inputs))]
    if len({tensor.batch for tensor in tensors}) != 1:
        raise unproven("joins matrices with different numbers of blocks per row")
    total: Number = 0
    for tensor in tensors:
        total = call.algebra.plus(total, tensor.sizes[1])
    return call.make([tensors[0].sizes[0], total], tensors[0].batch)


@operator("ZipMap", domain=LEARNING)
def zip_map(call: Call) -> Result:
    """A map from class to score for each row."""
    tensor = _matrix(call)
    if tensor.batch is None or not tensor.batch.is_plain:
        raise unproven("makes several maps per row")
    return Maps()


@operator("TfIdfVectorizer", padded=True)
def tf_idf(call: Call) -> Result:
    """The n-gram counts of each row."""
    tensor = call.data(0)
    _matrix(call)
    if tensor.padding is not None:
        found = call.attribute("pool_strings")
        if found is None or tensor.padding in found.strings():
            raise mixes("counts the padding of rows, which depends on the longest row of the batch")
    return call.make([tensor.sizes[0], call.algebra.fresh()], tensor.batch)


@operator("StringNormalizer")
def string_normalizer(call: Call) -> Result:
    """Strings in lower or upper case, without stop words."""
    tensor = call.data(0)
    found = call.attribute("stopwords")
    if found is not None and found.strings() and tensor.batch is not None:
        raise mixes("removes rows that are stop words", ragged=True)
    return call.make(tensor.sizes, tensor.batch)


@operator("StringSplit")
def string_split(call: Call) -> Result:
    """The parts of each string, padded to the longest row."""
    if not call.all_shared():
        raise mixes("pads each row to the length of the longest row of the batch", ragged=True)
    raise unproven("is not supported by the analysis")


@operator("Tokenizer", domain=MICROSOFT)
def tokenizer(call: Call) -> Result:
    """The words of each string, padded to the longest row."""
    tensor = call.data(0)
    shape = [*tensor.sizes, call.algebra.fresh()]
    if tensor.batch is None:
        return call.make(shape)
    found = call.make(shape, tensor.batch)
    return Tensor(found.shape, found.batch, padding=call.string("pad_value"))

"""Model files of other tools: the source of each, and matching requests.

What is trained is trained on data that comes with scikit-learn; what is shipped is taken from its package as it is.
"""

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Foreign:
    """One model file.

    Attributes:
        name: of the served model.
        tool: what wrote the file, and how.
        packages: that are needed to make it.
        make: writes the file.
        feeds: makes the inputs of a request of so many rows.
        independent: whether its rows are independent, so that it has to be batched.
        heavy: whether a run takes so long that it gets fewer requests.
    """

    name: str
    tool: str
    packages: tuple[str, ...]
    make: Callable[[Path], None]
    feeds: Callable[[np.random.Generator, int], Feeds]
    independent: bool = True
    heavy: bool = False

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


@cache
def table(name):
    """Rows and targets of a data set of scikit-learn, scaled to about one where they are images."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return (x / 16 if name == "digits" else x).astype(np.float32), y


@cache
def sentences():
    """Lines of the descriptions that come with the data sets, and the set that each describes."""
    from sklearn import datasets

    found = [
        (line.strip(), name)
        for name in ("iris", "wine", "breast_cancer", "digits", "diabetes")
        for line in getattr(datasets, f"load_{name}")().DESCR.splitlines()
        if len(line.split()) > 2
    ]
    return np.array([line for line, _ in found], object), np.array([name for _, name in found])


def rows_of(name, tensor="X", shape=(-1,)):
    """Requests of rows of a data set."""

    def feeds(rng, rows):
        x = table(name)[0]
        return {tensor: x[rng.integers(0, len(x), rows)].reshape(rows, *shape)}

    return feeds


def noise(tensor, *shape):
    """Requests of normal random numbers; a size given as a tuple is one of these, by chance."""

    def feeds(rng, rows):
        sizes = [int(rng.choice(size)) if isinstance(size, tuple) else size for size in shape]
        return {tensor: rng.standard_normal((rows, *sizes)).astype(np.float32)}

    return feeds


def save(model, path):
    path.write_bytes(model.SerializeToString())


# scikit-learn ------------------------------------------------------------------------------------------------------


def skl2onnx_of(estimator, name, **options):
    def make(path):
        from skl2onnx import to_onnx

        x, y = table(name)
        fitted = estimator().fit(x, y)
        save(to_onnx(fitted, x[:1], options={id(fitted): options} if options else None, target_opset=18), path)

    return make


def logistic():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000)


def pipeline():
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), PCA(8), SVC())


def forest():
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(50, random_state=0)


def boosted():
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(n_estimators=50, random_state=0)


def texts(path):
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    lines, names = sentences()
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=500)).fit(lines, names)
    save(to_onnx(fitted, initial_types=[("text", StringTensorType([None]))], target_opset=18), path)


def lines_of_text(rng, rows):
    return {"text": rng.choice(sentences()[0], rows)}


# Gradient boosting -------------------------------------------------------------------------------------------------


def lightgbm(path):
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y = table("wine")
    fitted = LGBMClassifier(n_estimators=30, verbose=-1, n_jobs=1).fit(x, y)
    inputs = [("X", FloatTensorType([None, x.shape[1]]))]
    save(convert_lightgbm(fitted, initial_types=inputs, target_opset=15), path)


def xgboost(path):
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType
    from xgboost import XGBRegressor

    x, y = table("diabetes")
    fitted = XGBRegressor(n_estimators=50, n_jobs=1).fit(x, y)
    inputs = [("X", FloatTensorType([None, x.shape[1]]))]
    save(convert_xgboost(fitted, initial_types=inputs, target_opset=15), path)


def catboost(path):
    from catboost import CatBoostClassifier

    fitted = CatBoostClassifier(iterations=50, verbose=False, thread_count=1, allow_writing_files=False)
    fitted.fit(*table("breast_cancer"))
    fitted.save_model(str(path), format="onnx")


# PyTorch -----------------------------------------------------------------------------------------------------------


def network():
    """A small convolutional network for the digits, trained for a few seconds."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    x, y = (torch.tensor(part) for part in table("digits"))
    found = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.Tanh(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(found.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(found(x), y).backward()
        optimizer.step()
    return found.eval()


def exported(model, arguments, path, *, dynamo, inputs, outputs, dynamic):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {"dynamic_shapes": dynamic} if dynamo else {"dynamic_axes": dynamic}
        torch.onnx.export(
            model, arguments, str(path), dynamo=dynamo, input_names=inputs, output_names=outputs,
            external_data=False, verbose=False, **shapes,
        )  # fmt: skip


def torch_dynamo(path):
    import torch

    exported(
        network(), (torch.zeros(2, 64),), path, dynamo=True, inputs=["x"], outputs=["logits"],
        dynamic=({0: torch.export.Dim("batch")},),
    )  # fmt: skip


def torch_script(path):
    import torch

    exported(
        network(), (torch.zeros(2, 64),), path, dynamo=False, inputs=["x"], outputs=["logits"],
        dynamic={"x": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip


def bert(path):
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    config.return_dict = False
    ids = torch.ones(2, 8, dtype=torch.long)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=64)
    exported(
        model, (ids, ids), path, dynamo=True, inputs=["input_ids", "attention_mask"], outputs=["logits"],
        dynamic={"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}},
    )  # fmt: skip


def tokens(rng, rows):
    length = int(rng.choice((8, 16)))
    lengths = rng.integers(1, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(0, 1000, (rows, length)) * mask, "attention_mask": mask}


# onnxruntime's quantization ----------------------------------------------------------------------------------------


def quantized_dynamic(path):
    from onnxruntime.quantization import quantize_dynamic

    torch_script(path)
    quantize_dynamic(path, path)


def quantized_static(path):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Rows(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(table("digits")[0][:512].reshape(16, 32, 64))

        def get_next(self):
            return next(({"x": rows} for rows in self.rows), None)

    torch_script(path)
    quantize_static(path, path, Rows())


# Files that packages ship ------------------------------------------------------------------------------------------


def shipped(package, file):
    def make(path):
        (folder,) = importlib.util.find_spec(package).submodule_search_locations
        shutil.copyfile(Path(folder) / file, path)

    return make


def file_bytes(rng, rows):
    """As magika reads files: bytes, and 256 where a file has no more."""
    return {"bytes": rng.integers(0, 257, (rows, 2048)).astype(np.int32)}


def sound(rng, rows):
    return {
        "input": (0.1 * rng.standard_normal((rows, 576))).astype(np.float32),
        "state": (0.1 * rng.standard_normal((2, rows, 128))).astype(np.float32),
        "sr": np.array(16000, np.int64),
    }


SKLEARN = ("sklearn", "skl2onnx")
TORCH = ("torch", "onnxscript")
OCR = "rapidocr_onnxruntime"
MODELS = (
    Foreign("logistic", "skl2onnx, LogisticRegression with ZipMap", SKLEARN,
            skl2onnx_of(logistic, "iris"), rows_of("iris")),
    Foreign("pipeline", "skl2onnx, StandardScaler, PCA and SVC", SKLEARN,
            skl2onnx_of(pipeline, "digits"), rows_of("digits")),
    Foreign("forest", "skl2onnx, RandomForestClassifier without ZipMap", SKLEARN,
            skl2onnx_of(forest, "digits", zipmap=False), rows_of("digits")),
    Foreign("boosted", "skl2onnx, GradientBoostingRegressor", SKLEARN,
            skl2onnx_of(boosted, "diabetes"), rows_of("diabetes")),
    Foreign("texts", "skl2onnx, TfidfVectorizer and LogisticRegression", SKLEARN, texts, lines_of_text),
    Foreign("lightgbm", "onnxmltools of LightGBM", ("lightgbm", "onnxmltools"), lightgbm, rows_of("wine")),
    Foreign("xgboost", "onnxmltools of XGBoost", ("xgboost", "onnxmltools"), xgboost, rows_of("diabetes")),
    Foreign("catboost", "CatBoost", ("catboost",), catboost, rows_of("breast_cancer", "features")),
    Foreign("dynamo", "torch.onnx.export, dynamo", TORCH, torch_dynamo, rows_of("digits", "x")),
    Foreign("torchscript", "torch.onnx.export, TorchScript", TORCH, torch_script, rows_of("digits", "x")),
    Foreign("bert", "transformers, BertForSequenceClassification", ("transformers", *TORCH), bert, tokens),
    Foreign("quantized_dynamic", "onnxruntime's quantize_dynamic", TORCH,
            quantized_dynamic, rows_of("digits", "x"), independent=False),
    Foreign("quantized_static", "onnxruntime's quantize_static", TORCH, quantized_static, rows_of("digits", "x")),
    Foreign("magika", "magika's file", ("magika",), shipped("magika", "models/standard_v3_3/model.onnx"), file_bytes,
            heavy=True),
    Foreign("ocr_cls", "rapidocr's classifier of directions", (OCR,),
            shipped(OCR, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"), noise("x", 3, 48, (64, 96)), heavy=True),
    Foreign("ocr_det", "rapidocr's detector", (OCR,),
            shipped(OCR, "models/ch_PP-OCRv4_det_infer.onnx"), noise("x", 3, 64, 64), heavy=True),
    Foreign("ocr_rec", "rapidocr's recognizer", (OCR,),
            shipped(OCR, "models/ch_PP-OCRv4_rec_infer.onnx"), noise("x", 3, 48, 64), heavy=True),
    Foreign("silero", "silero-vad's file", ("silero_vad",), shipped("silero_vad", "data/silero_vad.onnx"), sound),
)  # fmt: skip

"""The loss follows the targets, or is refused; the metrics are those of scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.optional import Optional
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from panther.train import evaluate, fit, metrics, task_of
from panther.train.targets import TargetLoss

sklearn_metrics = Optional("sklearn.metrics")
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(240, 12, generator=GENERATOR)
W = torch.randn(12, 3, generator=GENERATOR)
CLASSES, LABELS = (X @ W).argmax(1), (X @ W > 0).float()
VALUES = 40 * (X @ W) + 7


def batches(y, x=X, size=50):
    return DataLoader(TensorDataset(x, y), batch_size=size)


def network(outputs=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, outputs))


@pytest.mark.parametrize(
    ("y", "outputs", "task"),
    [
        (CLASSES, 3, "classification"),
        (CLASSES.int(), 3, "classification"),
        (F.one_hot(CLASSES).float(), 3, "classification"),
        (VALUES, 3, "regression"),
        (VALUES[:, 0], 1, "regression"),
        (VALUES[:, :1].double(), 1, "regression"),
        (LABELS, 3, "multilabel"),
        (LABELS.bool(), 3, "multilabel"),
        (LABELS[:, 0], 1, "multilabel"),
    ],
)
def test_the_loss_follows_the_targets_and_learns(y, outputs, task):
    model = network(outputs)
    output = model(X)
    assert task_of(output, y) == task
    index = y.argmax(1) if y.is_floating_point() and task == "classification" else y
    expected = {
        "classification": lambda: F.cross_entropy(output, index.long()),
        "regression": lambda: F.mse_loss(output, y.reshape(output.shape).to(output.dtype)),
        "multilabel": lambda: F.binary_cross_entropy_with_logits(output, y.reshape(output.shape).float()),
    }[task]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(TargetLoss()(output, y), expected, check_dtype=False)
        before = evaluate(model, batches(y))
        results = fit(model, batches(y), epochs=60, lr=0.02, validation=batches(y))
    assert results[-1].loss < 0.3 * results[0].loss
    assert results[-1].score == pytest.approx(evaluate(model, batches(y)))
    assert results[-1].score > max(before, 0.9)


@pytest.mark.parametrize(
    ("y", "outputs", "match"),
    [
        (VALUES[:, 0], 3, r"targets float32 of shape \(50,\) for outputs of shape \(50, 3\) fit no default loss"),
        (VALUES, 2, r"targets float32 of shape \(50, 3\) for outputs of shape \(50, 2\)"),
        (CLASSES + 5, 1, r"are whole numbers: for classes the model needs an output for each"),
    ],
)
def test_targets_that_fit_nothing_are_refused_before_a_step(y, outputs, match):
    model = network(outputs)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=match):
        fit(model, batches(y), epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(ValueError, match=match):
        evaluate(model, batches(y))


def test_a_loss_of_ones_own_is_taken_as_it_is():
    fit(network(1), batches(VALUES[:, 0]), epochs=1, loss_fn=lambda output, y: (output[:, 0] - y).abs().mean())


def test_regression_is_measured_as_scikit_learn_does():
    model = network()
    fit(model, batches(VALUES), epochs=5, lr=0.02)
    with torch.no_grad():
        y, y_hat = VALUES.double().numpy(), model(X).double().numpy()
    found = metrics(model, batches(VALUES))
    assert list(found) == ["r2", "rmse", "mae"]
    assert found["r2"] == pytest.approx(sklearn_metrics.r2_score(y, y_hat), abs=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt(((y - y_hat) ** 2).mean()), rel=1e-6)
    assert found["mae"] == pytest.approx(np.abs(y - y_hat).mean(), rel=1e-6)
    constant = metrics(model, batches(torch.full((240, 3), 2.5)), task="regression")
    assert constant["r2"] == 0


def test_several_labels_are_measured_as_scikit_learn_does():
    model = network()
    fit(model, batches(LABELS), epochs=2, lr=0.02)
    with torch.no_grad():
        y, y_hat = LABELS.numpy(), (model(X) > 0).numpy()
    found = metrics(model, batches(LABELS))
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(y, y_hat, average="micro"))
    assert found["label_accuracy"] == pytest.approx((y == y_hat).mean())
    assert found["subset_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(y, y_hat))


def test_classes_are_measured_as_before():
    model = network()
    with torch.no_grad():
        right = (model(X).argmax(1) == CLASSES).float().mean().item()
    assert metrics(model, batches(CLASSES)) == {"accuracy": pytest.approx(right)}
    assert evaluate(model, batches(CLASSES)) == pytest.approx(right)
    with pytest.raises(ValueError, match="holds no row"):
        metrics(model, batches(VALUES[:0], X[:0]))


def test_a_later_batch_of_another_kind_is_refused():
    y = VALUES.clone()
    y[:50] = LABELS[:50]
    with pytest.raises(ValueError, match=r"targets float32 of shape \(50, 3\).* must all be 0 or 1 for multilabel"):
        fit(network(), batches(y), epochs=1)
    with pytest.raises(ValueError, match="must all be 0 or 1 for multilabel"):
        metrics(network(), batches(y))
    assert metrics(network(), batches(y), task="regression")["rmse"] > 1


def test_the_validation_rows_are_scored_by_the_task_of_the_training_rows():
    # the validation rows alone would pass for labels
    (result,) = fit(network(), batches(VALUES), epochs=1, validation=batches(LABELS))
    model = network()
    fit(model, batches(VALUES), epochs=1)
    assert result.score == pytest.approx(metrics(model, batches(LABELS), task="regression")["r2"])
    assert result.score < 0


def test_classes_of_pixels_lie_along_axis_1():
    images = torch.randn(8, 3, 4, 5, generator=torch.Generator().manual_seed(5))
    y = images.argmax(1)
    model = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        model.bias.zero_()
        torch.testing.assert_close(TargetLoss()(model(images), y), F.cross_entropy(images, y))
    assert metrics(model, batches(y, images, size=4)) == {"accuracy": 1.0}


def test_autocast_costs_the_targets_no_digits():
    y = torch.full((4, 1), 1001.0)
    assert TargetLoss("regression")(torch.full((4, 1), 1000.0, dtype=torch.bfloat16), y) == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: task_of((X, X), CLASSES),
            "the model returns tuple; the default loss needs one tensor: give a loss_fn",
        ),
        (lambda: task_of(X, X.to(torch.complex64)), "targets complex64 of shape .* fit no default loss"),
        (
            lambda: evaluate(network(), batches(CLASSES), task="ranking"),
            r"task \('ranking'\) must be one of 'classific",
        ),
        (
            lambda: evaluate(network(), batches(CLASSES), task="regression"),
            "must have the output's shape for regression",
        ),
        (lambda: evaluate(network(), batches(VALUES), task="classification"), "must be a probability for each class"),
    ],
)
def test_what_has_no_task_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_model_that_returns_a_tuple_needs_a_loss():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(ValueError, match="the model returns tuple"):
        fit(Pair(12, 3), batches(VALUES), epochs=1)
    fit(Pair(12, 3), batches(VALUES), epochs=1, loss_fn=lambda output, y: F.mse_loss(output[0], y))

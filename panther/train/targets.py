"""Training tasks: the loss and the metrics that fit the targets."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Task = Literal["classification", "regression", "multilabel"]
TASKS: tuple[Task, ...] = get_args(Task)


def task_of(output: Tensor, y: Tensor) -> Task:
    """Find the task of a batch from its targets.

    - whole numbers, one a row: **classification**, y being the index of the largest output;
    - numbers of the output's shape (or one a row, where the output has one): **classification** where each row is a
      probability for each class, that is at least 0 and 1 in sum, and there are several; **multilabel** where all are 0
      or 1; else **regression**.

    Classes lie along axis 1, as for `torch.nn.functional.cross_entropy`.

    Args:
        output: of the model, (N, …).
        y: the targets of the same rows.

    Raises:
        ValueError: they don't fit together, or output is no tensor; says what would fit.
    """
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model returns {type(output).__name__}; the default loss needs one tensor: give a loss_fn"
        )
    whole = not (y.is_floating_point() or y.is_complex())
    if not y.is_complex() and _one_to_one(output, y):
        if not whole and _probabilities(y):
            return "classification"
        if _zeros_and_ones(y):
            return "multilabel"
        if whole and y.shape != output.shape:
            raise ValueError(
                f"{_shapes(output, y)} are whole numbers: for classes the model needs an output for each, "
                "for regression the targets must be floating-point numbers"
            )
        return "regression"
    if whole and output.dim() > 1 and y.shape == output.shape[:1] + output.shape[2:]:
        return "classification"
    raise ValueError(
        f"{_shapes(output, y)} fit no default loss: give class indices as whole numbers, one a row, numbers of the "
        "output's shape, or a loss_fn"
    )


def check_task(task: str) -> None:
    """Refuse a task that there is not.

    Raises:
        ValueError: it is none of `TASKS`.
    """
    if task not in TASKS:
        raise ValueError(f"task ({task!r}) must be one of {', '.join(map(repr, TASKS))}")


def check_targets(task: Task, output: Tensor, y: Tensor) -> None:
    """Refuse targets that are not of the task, which an earlier batch or the caller decided.

    Raises:
        ValueError: says which they are and what to do.
    """
    if task == "classification" and not y.is_floating_point():
        fits, rule = y.shape == output.shape[:1] + output.shape[2:], "be one whole number a row"
    elif not _one_to_one(output, y):
        fits, rule = False, "have the output's shape"
    elif task == "classification":
        fits, rule = _probabilities(y), "be a probability for each class"
    else:
        fits, rule = task == "regression" or _zeros_and_ones(y), "all be 0 or 1"
    if not fits:
        raise ValueError(
            f"{_shapes(output, y)} must {rule} for {task}, which the first batch or the caller decided; "
            "give a loss_fn or a task where they mean something else"
        )


class TargetLoss:
    """The mean loss that fits the targets, decided by the first batch: `task_of` says how.

    Later batches must be of the same task.

    Attributes:
        task: None until the first batch.
    """

    def __init__(self, task: Task | None = None) -> None:
        self.task = task

    def decide(self, output: Tensor, y: Tensor) -> Task:
        """The task, found from this batch where none was before."""
        if self.task is None:
            self.task = task_of(output, y)
        return self.task

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, squared error, or cross-entropy of each label."""
        self.check(output, y)
        return self.checked(output, y)

    def check(self, output: Tensor, y: Tensor) -> None:
        """Refuse targets of another task; waits for the device where y lies, of output only the shape is read.

        Raises:
            ValueError: says which they are and what to do.
        """
        check_targets(self.decide(output, y), output, y)

    def checked(self, output: Tensor, y: Tensor) -> Tensor:
        """The loss for targets that `check` accepted, without waiting for the device."""
        task = self.decide(output, y)
        if task == "classification":
            return F.cross_entropy(output, y if y.is_floating_point() else y.long())
        # outputs are in half precision under autocast, in which targets would lose digits
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        loss = F.mse_loss if task == "regression" else F.binary_cross_entropy_with_logits
        return loss(output, y.reshape(output.shape).to(output.dtype))


class Scores:
    """Sums over rows from which the metrics of a task are computed.

    Args:
        task: what is learnt.

    Raises:
        ValueError: task is unknown.
    """

    def __init__(self, task: Task) -> None:
        check_task(task)
        self.task = task
        self._sums: Tensor | None = None

    def add(self, output: Tensor, y: Tensor) -> None:
        """Add rows.

        Raises:
            ValueError: the targets are not of the task.
        """
        check_targets(self.task, output, y)
        sums = _SUMS[self.task](output.detach(), y)
        self._sums = sums if self._sums is None else self._sums + sums

    @property
    def sums(self) -> list[float]:
        """Sums that the processes of a run add up."""
        return [] if self._sums is None else self._sums.flatten().tolist()

    def width(self, output: Tensor) -> int:
        """How many sums there are for outputs like these."""
        return {"classification": 2, "multilabel": 7}.get(self.task, 5 * output[:1].numel())

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The metrics, the headline first; higher is better for it alone.

        Raises:
            ValueError: there are no rows.
        """
        if not sums or sums[0] == 0:
            raise ValueError("batches holds no row")
        if self.task == "classification":
            rows, correct = sums
            return {"accuracy": correct / rows}
        if self.task == "multilabel":
            labels, right, hits, misses, false_alarms, rows, whole = sums
            found = 2 * hits + misses + false_alarms
            return {
                "f1": 2 * hits / found if found else 1.0,
                "label_accuracy": right / labels,
                "subset_accuracy": whole / rows,
            }
        return _regression(torch.tensor(sums, dtype=torch.float64).view(5, -1))


def _regression(sums: Tensor) -> dict[str, float]:
    rows, y, y_squared, squared_error, absolute_error = sums
    variation = (y_squared - y.square() / rows).clamp_min(0)
    # a constant target: explained if predicted exactly, as in scikit-learn
    constant = variation <= 1e-12 * y_squared.clamp_min(torch.finfo(torch.float64).tiny)
    met = (squared_error == 0).double()
    r2 = torch.where(constant, met, 1 - squared_error / variation.where(~constant, 1.0))
    return {
        "r2": r2.mean().item(),
        "rmse": math.sqrt((squared_error.sum() / rows.sum()).item()),
        "mae": (absolute_error.sum() / rows.sum()).item(),
    }


def _classification_sums(output: Tensor, y: Tensor) -> Tensor:
    classes = y.argmax(1) if y.is_floating_point() else y
    correct = (output.argmax(1) == classes).sum()
    return torch.stack([torch.as_tensor(classes.numel(), device=correct.device), correct]).double()


def _regression_sums(output: Tensor, y: Tensor) -> Tensor:
    """(5, columns)."""
    y_hat = output.double().reshape(len(output), -1)
    y = y.double().reshape(y_hat.shape)
    lost = y - y_hat
    rows = torch.full_like(y[0], len(y))
    return torch.stack([rows, y.sum(0), y.square().sum(0), lost.square().sum(0), lost.abs().sum(0)])


def _multilabel_sums(output: Tensor, y: Tensor) -> Tensor:
    found = output.reshape(len(output), -1) > 0
    held = y.reshape(found.shape).bool()
    same = found == held
    counts = (found.numel(), same.sum(), (found & held).sum(), (~found & held).sum(), (found & ~held).sum())
    return torch.stack(
        [torch.as_tensor(count, device=found.device).double() for count in (*counts, len(found), same.all(1).sum())]
    )


_SUMS = {"classification": _classification_sums, "regression": _regression_sums, "multilabel": _multilabel_sums}


def _shapes(output: Tensor, y: Tensor) -> str:
    dtype = str(y.dtype).removeprefix("torch.")
    return f"targets {dtype} of shape {tuple(y.shape)} for outputs of shape {tuple(output.shape)}"


def _one_to_one(output: Tensor, y: Tensor) -> bool:
    """Whether there is a target for each number of the output."""
    return y.shape == output.shape or (output.dim() > 1 and output.shape[-1] == 1 and y.shape == output.shape[:-1])


def _probabilities(y: Tensor) -> bool:
    """Whether each row is a probability for each of several classes."""
    if y.dim() < 2 or y.shape[1] < 2 or not bool((y >= 0).all()):
        return False
    sums = y.sum(1)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _zeros_and_ones(y: Tensor) -> bool:
    return bool(((y == 0) | (y == 1)).all())

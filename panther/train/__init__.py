"""Training: plain loops, data, and the side-by-side run of the `panther train` command."""

from panther.train.compare import Comparison, Trained, train_side_by_side
from panther.train.data import Dataset, load_digits, load_npz
from panther.train.distributed import process_group
from panther.train.loop import EpochResult, evaluate, fit, metrics
from panther.train.networks import ThreeLayerNet
from panther.train.optim import param_groups
from panther.train.targets import Task, task_of

__all__ = [
    "Comparison",
    "Dataset",
    "EpochResult",
    "Task",
    "ThreeLayerNet",
    "Trained",
    "evaluate",
    "fit",
    "load_digits",
    "load_npz",
    "metrics",
    "param_groups",
    "process_group",
    "task_of",
    "train_side_by_side",
]

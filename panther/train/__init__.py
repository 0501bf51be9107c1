"""Training: plain loops, data, and the side-by-side run of the `panther train` command."""

from panther.runs.processes import process_group
from panther.runs.sharding import full_state_dict
from panther.train.compare import Comparison, Trained, train_side_by_side
from panther.train.data import Dataset, load_digits, load_npz
from panther.train.evaluation import evaluate, metrics
from panther.train.loop import fit
from panther.train.networks import ThreeLayerNet
from panther.train.optim import param_groups
from panther.train.state import EpochResult
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
    "full_state_dict",
    "load_digits",
    "load_npz",
    "metrics",
    "param_groups",
    "process_group",
    "task_of",
    "train_side_by_side",
]

"""A loaded model together with what runs it, as the repository holds it and requests find it."""

from dataclasses import dataclass
from pathlib import Path

from app.batcher import Batcher
from app.device import Device, find_device
from app.errors import DeviceError, InvalidRequestError
from app.model import Model
from app.settings import Settings
from app.tensors import Array


@dataclass(frozen=True, slots=True)
class Serving:
    """A model and its batcher."""

    model: Model
    batcher: Batcher


@dataclass(frozen=True, slots=True)
class Prepared:
    """Input tensors that fit the model, and the outputs that are wanted."""

    feeds: dict[str, Array]
    output_names: tuple[str, ...]
    rows: int
    key: object


def prepare(model: Model, feeds: dict[str, Array], output_names: tuple[str, ...]) -> Prepared:
    """Check what only shows when all inputs are there.

    Raises:
        InvalidRequestError: inputs of different numbers of rows, or none at all.
    """
    if not model.batched:
        return Prepared(feeds, output_names, 1, None)
    arrays = list(feeds.values())
    rows = arrays[0].shape[0]
    if len(arrays) > 1:
        for name, array in feeds.items():
            if array.shape[0] != rows:
                first = next(iter(feeds))
                raise InvalidRequestError(
                    f"input {name!r} has {array.shape[0]} rows and input {first!r} has {rows}; "
                    "all must have the same number"
                )
    if rows == 0:
        raise InvalidRequestError("the inputs hold no rows; at least 1 is needed")
    if model.fixed_rows:
        return Prepared(feeds, output_names, rows, output_names)
    return Prepared(feeds, output_names, rows, (output_names, *(array.shape[1:] for array in arrays)))


class Loader:
    """Loads model files by the settings; finding out about the device happens once.

    Attributes:
        device: what can be had, or None where the device that was asked for can't.
        device_problem: why it can't, or None.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.num_threads = settings.threads()
        self.device: Device | None = None
        self.device_problem: str | None = None
        try:
            self.device = find_device(settings.device)
        except DeviceError as error:
            self.device_problem = str(error)

    def __call__(self, name: str, version: str, path: Path) -> Serving:
        """Load one version.

        Raises:
            LoadError: the file or the device can't be used.
        """
        if self.device is None:
            raise DeviceError(str(self.device_problem))
        model = Model(name, version, path, self.device, self.num_threads)
        return Serving(model, Batcher(model, max_rows=256, inline_ns=2_000_000))

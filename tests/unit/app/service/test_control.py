"""Commands of the log in one worker, and loads that are tried again."""

import asyncio
import errno

import pytest
from helpers import build

from app.cluster.control_log import Command, History
from app.config.settings import Settings
from app.errors import LoadError
from app.repository.repository import Repository
from app.service.control import ModelControl

FULL = LoadError("model 'm' version 2 cannot be loaded in a trial: Too many open files")


class Worker:
    """A worker with real models, whose loads fail as they are told to."""

    def __init__(self, root, build_serving):
        self.fails = []
        self.repository = Repository(root, "latest", self._load)
        self.control = ModelControl(Settings(model_dir=root, model_control="explicit"), self.repository)
        self._build = build_serving

    def _load(self, name, version, path, settings):
        if self.fails:
            raise self.fails.pop(0)
        return self._build(name, version, path, settings)

    def served(self, name="m"):
        return self.repository.serving_versions().get(name)

    def devices(self):
        return [instance.device for instance in self.repository.get("m").model.instances]

    def apply(self, *command):
        async def run():
            return await self.control.apply_command(Command(*command))

        return asyncio.run(run())

    def retry(self):
        return asyncio.run(self.control.retry_once())


@pytest.fixture
def worker(tmp_path):
    from app.repository.served_model import Loader

    build.put(tmp_path, build.Tiny(seed=1).graph(), "m", "1")
    made = Worker(tmp_path, Loader(Settings(model_dir=tmp_path, device="cpu", trial_load_s=0)))
    asyncio.run(made.control.load_all())
    build.put(tmp_path, build.Tiny(seed=2).graph(), "m", "2")
    return made


def test_a_command_is_decided_by_what_is_served_then(worker):
    result = worker.apply(1, "load", "m")
    assert (result.versions, result.changed, result.error) == ("2", True, None)
    result = worker.apply(2, "unload", "m")
    assert (result.versions, result.changed, result.error) == ("", True, None)
    result = worker.apply(3, "unload", "unknown")
    assert (result.versions, result.changed, result.kind) == ("", False, "ModelNotFoundError")


def test_what_another_worker_decided_is_come_to(worker):
    # The other one saw version 1 only, since version 2 came a moment later.
    assert worker.apply(1, "load", "m", None, "1").error is None
    assert worker.served() == "1"
    assert worker.apply(2, "unload", "m", None, "").error is None
    assert worker.served() == ""


TWICE = {"devices": ["cpu"], "instances": 2}


def test_a_placement_of_the_log_holds_until_the_next_load_and_for_later_workers(tmp_path, worker):
    assert worker.apply(1, "load", "m", None, "1", TWICE).error is None
    assert worker.devices() == ["cpu", "cpu"]
    later = Worker(tmp_path, worker._build)
    later.fails += [FULL, FULL]
    asyncio.run(later.control.load_all(History(("m",), (Command(4, "load", "m", None, "1", TWICE),))))
    assert later.served() == ""
    assert later.retry() is True  # the placement is remembered beside the versions
    later.retry()
    assert later.devices() == ["cpu", "cpu"]
    assert worker.apply(2, "load", "m").error is None
    assert worker.devices() == ["cpu"]


def test_a_command_that_fails_here_alone_is_tried_again_until_a_later_one(worker):
    worker.fails += [FULL, FULL, FULL]
    result = worker.apply(1, "load", "m", None, "2")
    assert (result.versions, result.error) == ("1", str(FULL))
    assert worker.control.behind == {"m": str(FULL)}
    assert worker.retry() is True
    assert worker.served() == "1"
    assert worker.retry() is False
    assert (worker.served(), worker.control.behind) == ("2", {})
    worker.fails += [FULL, FULL]
    worker.apply(2, "load", "m", None, "1")
    assert worker.apply(3, "unload", "m").error is None
    assert worker.retry() is False
    assert (worker.served(), worker.control.behind) == ("", {})


def test_where_a_version_is_not_in_the_folder_the_worker_says_so(worker):
    result = worker.apply(1, "load", "m", None, "7")
    assert result.error == "model 'm' has no version of version_policy '7'; available: 1, 2"
    assert worker.served() == "2"  # what its settings select is better than nothing
    assert list(worker.control.behind) == ["m"]


def test_what_descriptors_were_short_for_at_the_start_is_loaded_later(tmp_path, worker):
    later = Worker(tmp_path, worker._build)
    later.fails += [FULL, FULL]
    asyncio.run(later.control.load_all(History(("m",), (Command(4, "load", "m", None, "1"),))))
    assert later.served() == ""
    assert later.repository.entry("m").versions["1"].reason == str(FULL)
    assert later.repository.problems() != []
    assert later.retry() is True
    assert later.retry() is True
    assert (later.served(), later.repository.problems()) == ("1", [])  # the version of the log, not the newest
    assert later.retry() is False


def test_a_broken_file_is_not_tried_again(tmp_path, worker):
    later = Worker(tmp_path, worker._build)
    later.fails += [LoadError("rubbish"), LoadError("rubbish")]
    asyncio.run(later.control.load_all())
    assert later.retry() is False
    assert later.served() == ""


def test_a_folder_that_no_descriptor_is_left_for_is_an_error_and_no_missing_model(worker, monkeypatch):
    def refuse(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    result = worker.apply(1, "load", "m")
    assert result.error == "the folder of model 'm' can't be read: Too many open files"
    assert worker.served() == "1"
    assert worker.repository.index()[0].served == "1"
    with pytest.raises(OSError, match="Too many open files"):
        worker.repository.load_all()

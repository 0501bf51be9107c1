"""Trials: what a process of its own tells of a model, and what becomes of that process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import onnx
import pytest
from helpers import build
from onnx import TensorProto, helper, numpy_helper

from app.config.settings import Settings
from app.errors import LoadError, LoadTimeoutError
from app.repository.model_settings import ModelSettings
from app.repository.served_model import Loader
from app.repository.trial_load import Trial, Trials
from app.repository.trial_process import Passed, Problem, judge
from app.runtime.external_data import external_files
from app.system.memory import available_bytes, is_short

FLOAT = TensorProto.FLOAT
ROOT = Path(__file__).parents[4]


@pytest.fixture
def trials():
    found = Trials()
    yield found
    found.close()


def trial(path: Path, limit_s: float = 30.0, max_rows: int | None = 8) -> Trial:
    return Trial("m", "1", str(path), 1, max_rows, limit_s)


def helper_ids(trials: Trials) -> set[int | None]:
    return {helper.process.pid for helper in trials._idle}


@pytest.fixture
def filling(tmp_path) -> Path:
    """A model that asks for 400 GB when it is run."""
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    sizes = numpy_helper.from_array(np.array([1, 10**11]), "s")
    made = build.onnx_model(nodes, [("x", FLOAT, ["n", 1])], [("y", FLOAT, ["n", None])], [sizes])
    return build.put(tmp_path, made, "filling")


@pytest.fixture
def endless(tmp_path) -> Path:
    """A model whose loop never ends."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["v"], ["v_out"])],
        "inner",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, ["n", 2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", FLOAT, ["n", 2]),
        ],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    endless = helper.make_node("Loop", ["", "yes", "x"], ["y"], body=inner)
    made = build.onnx_model([endless], [("x", FLOAT, ["n", 2])], [("y", FLOAT, ["n", 2])], [yes])
    return build.put(tmp_path, made, "endless")


def test_a_good_model_passes_time_and_again_in_one_helper(trials, tiny_dir):
    path = tiny_dir / "tiny" / "1" / "model.onnx"
    trials.run(trial(path))
    (helper_id,) = helper_ids(trials)
    for _ in range(3):
        trials.run(trial(path))
    assert helper_ids(trials) == {helper_id}
    trials.close()
    with pytest.raises(ProcessLookupError):
        os.kill(helper_id, 0)


def test_what_onnxruntime_says_of_a_damaged_file_is_passed_on(trials, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"rubbish")
    with pytest.raises(LoadError, match=r"model 'm' version 1: .*model\.onnx.*Protobuf parsing failed"):
        trials.run(trial(tmp_path / "model.onnx"))


def test_too_much_memory_is_noticed_where_the_model_is_run(trials, filling):
    with pytest.raises(LoadError, match=r"model 'm' version 1 is not loaded: a trial exceeded the available memory"):
        trials.run(trial(filling))


def test_a_trial_that_takes_too_long_is_ended(trials, endless):
    with pytest.raises(LoadTimeoutError, match=r"a trial took longer than trial_load_s \(0.5\)"):
        trials.run(trial(endless, 0.5))


def test_a_trial_that_takes_long_keeps_no_other_waiting(trials, endless, tiny_dir):
    def run_slow() -> None:
        with pytest.raises(LoadError):
            trials.run(trial(endless, 120.0))

    slow = Thread(target=run_slow)
    slow.start()
    try:
        wait_for(lambda: trials._busy)
        trials.run(trial(tiny_dir / "tiny" / "1" / "model.onnx"))
        assert slow.is_alive()
        trials.abort()
    finally:
        trials.close()
        slow.join(60)
    assert not slow.is_alive()


def test_a_trial_that_the_kernel_kills_was_short_of_memory(tmp_path):
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    killed = context.Process(target=_kill_itself)
    killed.start()
    writer.close()
    outcome = judge(trial(tmp_path / "model.onnx"), None, killed, reader)
    assert outcome == Problem(
        "model 'm' version 1 is not loaded: a trial was killed, probably because the machine ran out of memory"
    )
    assert is_short(outcome.problem)


def _kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_without_rows_only_a_session_is_made(trials, filling, tmp_path):
    """As before a load on CUDA: what the CPU can't run, or doesn't know, is no reason to refuse."""
    trials.run(trial(filling, max_rows=None))
    (tmp_path / "model.onnx").write_bytes(b"rubbish")
    trials.run(trial(tmp_path / "model.onnx", max_rows=None))


def test_a_helper_that_was_killed_is_replaced(trials, tiny_dir):
    path = tiny_dir / "tiny" / "1" / "model.onnx"
    trials.run(trial(path))
    (helper,) = trials._idle
    os.kill(helper.process.pid, signal.SIGKILL)
    helper.process.join()
    trials.run(trial(path))
    assert helper_ids(trials) != {helper.process.pid}


def test_a_helper_with_nothing_to_do_ends(trials, tiny_dir, monkeypatch):
    monkeypatch.setattr("app.repository.trial_load._IDLE_S", 0.05)
    trials.run(trial(tiny_dir / "tiny" / "1" / "model.onnx"))
    wait_for(lambda: not trials._idle)


@pytest.mark.parametrize(("spare_bytes", "passes"), [(1 << 29, True), (1 << 18, False)])
def test_a_limit_of_data_set_by_the_operator_is_kept_and_named(tiny_dir, spare_bytes, passes):
    """Every trial used to say that the file is damaged or hostile."""
    path = tiny_dir / "tiny" / "1" / "model.onnx"
    program = f"""
import re, resource
import app.runtime.model
from app.errors import LoadError
from app.repository.trial_load import Trial, trials
status = open("/proc/self/status").read()
limit = 1024 * int(re.search(r"VmData:\\s+(\\d+)", status)[1]) + {spare_bytes}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
trials.prepare()
try:
    trials.run(Trial("m", "1", {str(path)!r}, 1, 8, 60.0))
    print("passed")
except LoadError as error:
    print(error)
"""
    ended = run_program(program)
    said = "passed" if passes else "RLIMIT_DATA ('ulimit -d')"
    assert said in ended.stdout, (ended.stdout, ended.stderr)


def test_zero_seconds_load_untried(tiny_dir, monkeypatch):
    asked = []
    monkeypatch.setattr("app.repository.served_model.trials.run", lambda trial: asked.append(trial) or Passed())
    path = tiny_dir / "tiny" / "1" / "model.onnx"
    for seconds in (0, 7):
        settings = Settings(model_dir=tiny_dir, device="cpu", trial_load_s=seconds, num_threads=3)
        assert Loader(settings)("tiny", "1", path, ModelSettings(max_batch_rows=5)).model.batched
    assert asked == [Trial("tiny", "1", str(path), 3, 5, 7.0)]


def test_the_time_of_a_trial_grows_with_the_size_of_the_files(tiny_dir, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("app.repository.served_model.trials.run", lambda trial: asked.append(trial) or Passed())
    path = tmp_path / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes((tiny_dir / "tiny" / "1" / "model.onnx").read_bytes())
    with path.with_name("weights.bin").open("wb") as file:
        file.truncate(2_400_000_000)  # without any blocks on the disk
    Loader(Settings(model_dir=tmp_path, device="cpu"))("m", "1", path, ModelSettings())
    assert (asked[0].limit_s, asked[0].extra_s) == (60.0, 75.0)


def test_both_parts_of_the_time_limit_are_named(trials, endless):
    timed = Trial("m", "1", str(endless), 1, 8, 0.4, 0.1)
    with pytest.raises(LoadTimeoutError, match=r"took longer than trial_load_s \(0.4\) and 0.1 s for the size of its"):
        trials.run(timed)


def test_available_memory_is_within_the_machine():
    found = available_bytes()
    assert found is not None
    assert 0 < found < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_files_of_weights_are_found_by_name(tmp_path):
    weights = np.arange(12, dtype=np.float32).reshape(6, 2)
    made = build.onnx_model(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        [("x", FLOAT, ["n", 6])],
        [("y", FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "W")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    assert external_files(path) == {}
    (tmp_path / "notes.txt").write_text("nothing of the model's")
    assert external_files(path) == {}
    onnx.save(made, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert external_files(path) == {"w.bin": weights.tobytes()}
    path.write_bytes(b"rubbish")
    assert external_files(path) == {}


def test_the_first_helper_is_a_fork_that_holds_nothing_of_the_server_and_ends_with_it(tmp_path):
    """Not its sockets above all, which would keep the port."""
    program = f"""
import os, socket, sys
import app.runtime.model
from app.repository.trial_load import Trial, trials
held = socket.create_server(("127.0.0.1", 0))
trials.prepare()
helper = trials._idle[0].process.pid
trial = Trial("digits", "1", {str(ROOT / "models" / "digits" / "1" / "model.onnx")!r}, 1, 4, 30.0)
trials.run(trial)
links = sorted(os.readlink(f"/proc/{{helper}}/fd/{{fd}}").split(":")[0] for fd in os.listdir(f"/proc/{{helper}}/fd"))
assert [(item.process.pid, item.alive) for item in trials._idle] == [(helper, True)]
print(helper, links, flush=True)
os.kill(os.getpid(), 9)
"""
    ended = run_program(program)
    assert ended.returncode == -9, ended.stderr
    helper, _, links = ended.stdout.strip().partition(" ")
    assert links == "['/dev/null', '/dev/null', '/dev/null', 'socket']"  # the socket is its connection
    status = Path(f"/proc/{helper}/stat")
    wait_for(lambda: not status.exists() or ") Z " in status.read_text())


def run_program(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)

"""Trials: what a process of its own tells of a model, and what becomes of that process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.errors import LoadError
from app.external import external_files
from app.memory import available_bytes, is_short
from app.model_settings import ModelSettings
from app.serving import Loader
from app.settings import Settings
from app.trial import Trial, Trials, _watch

FLOAT = TensorProto.FLOAT
ROOT = Path(__file__).parents[2]


@pytest.fixture
def trials():
    found = Trials()
    yield found
    found.close()


def trial(path: Path, limit_s: float = 30.0, max_rows: int | None = 8) -> Trial:
    return Trial("m", "1", str(path), 1, max_rows, limit_s)


@pytest.fixture
def filling(tmp_path, build) -> Path:
    """A model that asks for 400 GB when it is run."""
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    sizes = numpy_helper.from_array(np.array([1, 10**11]), "s")
    made = build.onnx_model(nodes, [("x", FLOAT, ["n", 1])], [("y", FLOAT, ["n", None])], [sizes])
    return build.put(tmp_path, made, "filling")


def test_a_good_model_passes_time_and_again_in_one_helper(trials, tiny_dir):
    path = tiny_dir / "tiny" / "1" / "model.onnx"
    trials.run(trial(path))
    helper_id = trials._process.pid
    began = time.monotonic()
    for _ in range(3):
        trials.run(trial(path))
    assert trials._process.pid == helper_id
    assert time.monotonic() - began < 10
    trials.close()
    with pytest.raises(ProcessLookupError):
        os.kill(helper_id, 0)


def test_what_onnxruntime_says_of_a_damaged_file_is_passed_on(trials, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"rubbish")
    with pytest.raises(LoadError, match=r"model 'm' version 1: .*model\.onnx.*Protobuf parsing failed"):
        trials.run(trial(tmp_path / "model.onnx"))


def test_too_much_memory_is_noticed_where_the_model_is_run(trials, filling):
    with pytest.raises(LoadError, match=r"model 'm' version 1 is not loaded: a trial needed more memory than there is"):
        trials.run(trial(filling))


def test_a_trial_that_takes_too_long_is_ended(trials, tmp_path, build):
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
    path = build.put(tmp_path, made, "endless")
    began = time.monotonic()
    with pytest.raises(LoadError, match=r"a trial took longer than trial_load_s \(0.5\)"):
        trials.run(trial(path, 0.5))
    assert time.monotonic() - began < 10


def test_a_trial_that_the_kernel_kills_was_short_of_memory(tmp_path):
    reader, writer = os.pipe()
    killed = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], pass_fds=[writer])
    os.close(writer)
    problem = _watch(trial(tmp_path / "model.onnx"), None, killed.pid, reader)
    os.close(reader)
    killed.wait()
    assert (
        problem == "model 'm' version 1 is not loaded: a trial was killed, as the kernel does where it is out of memory"
    )
    assert is_short(problem)


def test_without_rows_only_a_session_is_made(trials, filling, tmp_path):
    """As before a load on CUDA: what the CPU can't run, or doesn't know, is no reason to refuse."""
    trials.run(trial(filling, max_rows=None))
    (tmp_path / "model.onnx").write_bytes(b"rubbish")
    trials.run(trial(tmp_path / "model.onnx", max_rows=None))


def test_a_helper_that_was_killed_is_replaced(trials, tiny_dir):
    path = tiny_dir / "tiny" / "1" / "model.onnx"
    trials.run(trial(path))
    os.kill(trials._process.pid, signal.SIGKILL)
    trials._process.wait()
    trials.run(trial(path))


def test_a_helper_with_nothing_to_do_ends(trials, tiny_dir, monkeypatch):
    monkeypatch.setattr("app.trial._IDLE_S", 0.05)
    trials.run(trial(tiny_dir / "tiny" / "1" / "model.onnx"))
    end = time.monotonic() + 10
    while trials._process is not None:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_zero_seconds_load_untried(tiny_dir, monkeypatch):
    asked = []
    monkeypatch.setattr("app.serving.trials.run", asked.append)
    path = tiny_dir / "tiny" / "1" / "model.onnx"
    for seconds in (0, 7):
        settings = Settings(model_dir=tiny_dir, device="cpu", trial_load_s=seconds, num_threads=3)
        assert Loader(settings)("tiny", "1", path, ModelSettings(max_batch_rows=5)).model.batched
    assert asked == [Trial("tiny", "1", str(path), 3, 5, 7.0)]


def test_available_memory_is_within_the_machine():
    found = available_bytes()
    assert found is not None
    assert 0 < found < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_files_of_weights_are_found_by_name(tmp_path, build):
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
import app.model
from app.trial import Trial, trials
held = socket.create_server(("127.0.0.1", 0))
trials.prepare()
helper = trials._process.pid
trial = Trial("digits", "1", {str(ROOT / "models" / "digits" / "1" / "model.onnx")!r}, 1, 4, 30.0)
trials.run(trial)
links = sorted(os.readlink(f"/proc/{{helper}}/fd/{{fd}}").split(":")[0] for fd in os.listdir(f"/proc/{{helper}}/fd"))
assert trials._process.pid == helper and trials._process.poll() is None
print(helper, links, flush=True)
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == -9, ended.stderr
    helper, _, links = ended.stdout.strip().partition(" ")
    assert links == "['/dev/null', 'pipe', 'pipe']"
    deadline = time.monotonic() + 10
    while Path(f"/proc/{helper}/stat").exists() and ") Z " not in Path(f"/proc/{helper}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)

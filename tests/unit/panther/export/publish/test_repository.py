import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from panther.export import ExportError
from panther.export.publish import repository
from panther.export.publish.repository import MODEL_FILE, check_name, staged, versions

ROOT = Path(__file__).parents[5]


def write(repository, content=b"new", name="m", data=None):
    with staged(repository, name) as stage:
        (stage.folder / MODEL_FILE).write_bytes(content)
        if data is not None:
            (stage.folder / stage.data_name).write_bytes(data)
        return stage.publish("# ours\nname: 'm'\n")


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_next_version_is_one_more_than_the_largest(tmp_path):
    assert write(tmp_path) == tmp_path / "m" / "1" / MODEL_FILE
    for name in ("7", "07", "junk", "0", ".8"):
        (tmp_path / "m" / name).mkdir()
    (tmp_path / "m" / "9").write_text("a file is no version")
    assert versions(tmp_path, "m") == [1, 7]
    assert write(tmp_path).parent.name == "8"
    assert write(tmp_path, name="other").parent.name == "1"
    assert versions(tmp_path, "none") == []


def test_files_are_for_the_servers_user_too(tmp_path):
    path = write(tmp_path)
    for part in (path, path.parent, path.parent.parent, path.parent.parent / "config.pbtxt"):
        assert part.stat().st_mode & 0o055 == (0o055 if part.is_dir() else 0o044)


def test_an_empty_folder_of_the_name_is_taken(tmp_path):
    (tmp_path / "m").mkdir()
    assert write(tmp_path) == tmp_path / "m" / "1" / MODEL_FILE


@pytest.mark.parametrize("first", [True, False])
def test_an_error_leaves_what_there_was(first, tmp_path):
    target = tmp_path / "new" / "models"
    if not first:
        write(target)
    before = everything(tmp_path)

    def fail(stage):
        (stage.folder / MODEL_FILE).write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError), staged(target, "m") as stage:
        fail(stage)
    assert everything(tmp_path) == before


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ExportError, match=r"cannot write to .*file/models: Not a directory"),
        staged(tmp_path / "file" / "models", "m"),
    ):
        pass


def test_a_read_only_repository_is_told(tmp_path):
    write(tmp_path)
    program = """
import os, sys
from pathlib import Path
from panther.export.publish.repository import staged
from panther.export.errors import ExportError
# root may write anywhere
if os.getuid() == 0: os.setuid(65534)
try:
    with staged(Path("models"), "m"): print("written")
except ExportError as error: print(error)
"""
    (tmp_path / "models").mkdir()
    (tmp_path / "models").chmod(0o555)
    tmp_path.chmod(0o755)
    # the folders above are pytest's own, private to this user: the child stands in its own already
    command = [sys.executable, "-I", "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "cannot write to models: Permission denied", ended.stderr


def test_a_full_disk_leaves_what_there_was(tmp_path, monkeypatch):
    write(tmp_path)
    before = everything(tmp_path)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository, "_sync_all", full)
    with pytest.raises(ExportError, match=r"cannot write model 'm' to .*: No space left on device"):
        write(tmp_path)
    assert everything(tmp_path) == before


def test_stale_folders_are_swept_and_fresh_ones_are_left(tmp_path):
    (tmp_path / "m").mkdir()
    for place in (tmp_path, tmp_path / "m"):
        for name, hours in ((".writing-old", 25), (".writing-fresh", 1)):
            (place / name).mkdir()
            (place / name / "model.onnx").write_text("")
            os.utime(place / name, (time.time() - hours * 3600,) * 2)
    write(tmp_path)
    write(tmp_path, name="new")
    assert [name for name in everything(tmp_path) if "old" in name] == []
    assert len([name for name in everything(tmp_path) if name.endswith(".writing-fresh")]) == 2


def test_a_file_of_the_callers_own_and_its_data(tmp_path):
    target = tmp_path / "net.onnx"
    mine = tmp_path / "net.onnx.notes.data"
    mine.write_text("not ours")
    for content in (b"1", b"2"):
        assert write(target, content, data=b"weights " + content) == target
    data = [path for path in tmp_path.glob("*.data") if path != mine]
    assert [path.read_bytes() for path in data] == [b"weights 2"]
    assert (target.read_bytes(), mine.read_text()) == (b"2", "not ours")
    assert not (tmp_path / "config.pbtxt").exists()


def test_somebodys_own_configuration_stays(tmp_path):
    write(tmp_path)
    config = tmp_path / "m" / "config.pbtxt"
    assert config.read_text().startswith("# ours")
    config.write_text("# ours\nold: 1\n")
    write(tmp_path)
    assert config.read_text() == "# ours\nname: 'm'\n"
    config.write_text("mine: 1\n")
    write(tmp_path)
    assert config.read_text() == "mine: 1\n"


def _write_many(folder, count, barrier):
    barrier.wait()
    for _ in range(count):
        write(Path(folder), str(os.getpid()).encode())


def test_processes_that_export_at_once_get_versions_of_their_own(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    # a fresh interpreter would take torch's import; these only rename
    workers = [context.Process(target=_write_many, args=(str(tmp_path), 10, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert versions(tmp_path, "m") == list(range(1, 41))
    written = [(tmp_path / "m" / str(version) / MODEL_FILE).read_text() for version in range(1, 41)]
    assert sorted(written.count(str(worker.pid)) for worker in workers) == [10] * 4
    assert [name for name in everything(tmp_path) if ".writing" in name] == []


KILLED = """
import os, sys
from pathlib import Path
from panther.export.publish import repository
# every call that changes or reaches the disk, in order; die before the one whose number is given
step = 0
def dying(function):
    def call(*arguments, **options):
        global step
        step += 1
        if step == {last}:
            os.kill(os.getpid(), 9)
        return function(*arguments, **options)
    return call
for name in ("mkdir", "rename", "replace", "chmod", "unlink", "rmdir", "write_bytes"):
    setattr(Path, name, dying(getattr(Path, name)))
os.fsync = dying(os.fsync)
with repository.staged(Path({target!r}), "m") as stage:
    (stage.folder / "model.onnx").write_bytes(b"new" * 1000)
    (stage.folder / stage.data_name).write_bytes(b"data")
    stage.publish("# ours\\nnew\\n")
"""


@pytest.mark.parametrize("target", ["models", "net.onnx"])
@pytest.mark.parametrize("first", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(target, first, tmp_path):
    outcomes = []
    for last in range(1, 60):
        place = tmp_path / str(last) / target
        place.parent.mkdir()
        if not first:
            write(place, b"old", data=b"old data")
        program = KILLED.format(last=last, target=str(place))
        ended = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
        outcomes.append(_state(place, first=first))
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.returncode == 0
    assert set(outcomes) == {"old", "new"}
    # once new, it stays new
    assert outcomes == sorted(outcomes, reverse=True)


def _state(place, *, first):
    """What a reader sees; fails on anything half done."""
    if place.suffix == ".onnx":
        content = place.read_bytes() if place.exists() else b"old"
        data = sorted(path.read_bytes() for path in place.parent.glob("net.onnx.*.data"))
        # the data that either model refers to is there
        assert (b"old data" if content == b"old" else b"data") in data or (first and content == b"old")
    else:
        found = versions(place, "m")
        contents = [(place / "m" / str(version) / MODEL_FILE).read_bytes() for version in found]
        assert contents in ([[], [b"new" * 1000]] if first else [[b"old"], [b"old", b"new" * 1000]])
        assert not found or (place / "m" / "config.pbtxt").exists()
        # a model's folder is there with a version or not at all
        assert bool(found) == (place / "m").exists()
        content = b"new" * 1000 if len(found) == (1 if first else 2) else b"old"
    assert content in (b"old", b"new" * 1000)
    return "old" if content == b"old" else "new"


@pytest.mark.parametrize("name", ["digits", "a", "A.b_c-1", "_a", "x" * 128])
def test_good_names(name):
    check_name(name)


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "..", "a b", "é", "x" * 129, "a\n"])
def test_bad_names(name):
    with pytest.raises(ValueError, match=r"must be 1 to 128 letters"):
        check_name(name)


def triton_config(text):
    """Parsed by Triton's own schema, read without the gRPC that the package around it asks for."""
    import importlib.util

    from google.protobuf import text_format

    package = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(package, "grpc", "model_config_pb2.py"))
    schema = sys.modules.get("model_config_pb2") or importlib.util.module_from_spec(spec)
    if "model_config_pb2" not in sys.modules:
        spec.loader.exec_module(schema)
        sys.modules["model_config_pb2"] = schema
    return schema, text_format.Parse(text, schema.ModelConfig())


class Mixed(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.a = layer

    def forward(self, x, ids, scale):
        y = self.a(x) * scale.unsqueeze(-1) + ids.sum(-1, keepdim=True)
        return y, y.argmax(-1)


@pytest.mark.parametrize("batched", [True, False])
def test_triton_reads_the_configuration(batched, sketched, export, tmp_path):
    x, ids, scale = torch.randn(4, 64), torch.randint(0, 9, (4, 3), dtype=torch.int32), torch.randn(4)
    axes = None if batched else {"ids": {1: "n"}}
    report = export(Mixed(sketched(64, 32)), [x, ids, scale], dynamic_axes=axes)
    schema, config = triton_config((report.path.parents[1] / "config.pbtxt").read_text())
    assert (config.name, config.backend) == ("m", "onnxruntime")
    assert (config.max_batch_size > 0, config.HasField("dynamic_batching")) == (batched, batched)
    session = onnxruntime.InferenceSession(str(report.path))
    types = {"tensor(float)": schema.TYPE_FP32, "tensor(int32)": schema.TYPE_INT32, "tensor(int64)": schema.TYPE_INT64}
    for entries, values in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [entry.name for entry in entries] == [value.name for value in values]
        for entry, value in zip(entries, values, strict=True):
            shape = [size if isinstance(size, int) else -1 for size in value.shape]
            assert list(entry.dims) == ((shape[1:] or [1]) if batched else shape)
            assert entry.HasField("reshape") == (batched and len(shape) == 1)
            assert entry.data_type == types[value.type]


def test_the_repository_is_as_the_report_says(mlp, export, tmp_path):
    first, second = export(mlp, torch.randn(4, 64)), export(mlp, torch.randn(4, 64))
    assert (first.version, second.version) == (1, 2)
    assert everything(tmp_path) == [
        "models",
        "models/m",
        "models/m/1",
        "models/m/1/model.onnx",
        "models/m/2",
        "models/m/2/model.onnx",
        "models/m/config.pbtxt",
    ]
    assert second.file_bytes == second.path.stat().st_size
    own = export(mlp, torch.randn(4, 64), tmp_path / "net.onnx")
    assert (own.version, own.path) == (None, tmp_path / "net.onnx")
    card = json.loads(onnxruntime.InferenceSession(str(own.path)).get_modelmeta().custom_metadata_map["panther.card"])
    assert card["name"] == "m"
    assert np.isfinite(card["check"]["max_relative_error"])

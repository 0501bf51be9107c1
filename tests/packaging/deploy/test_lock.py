"""requirements/*.lock against their sources: the pins, and what the installed packages say they need."""

import importlib.metadata
import itertools
import json
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ;.*)? \\$")
# What onnxruntime-gpu 1.31 asks for in its extras cuda and cudnn, and what these need; no more of NVIDIA's packages.
CUDA = {
    "nvidia-cublas",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime",
    "nvidia-cudnn-cu13",
    "nvidia-cufft",
    "nvidia-curand",
    "nvidia-nvjitlink",
}


def requirements(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["cpu"], *extras["grpc"]]


def closure(wanted):
    """Names of all packages that the requirements bring, by the metadata of the installed ones."""
    names, todo = set(), [Requirement(line) for line in wanted]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in names:
            continue
        names.add(name)
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return names


def read(root, device):
    return (root / f"requirements/serve-{device}.lock").read_text().splitlines()


def pins_of(lines):
    return {canonicalize_name(match[1]): match[2] for line in lines if (match := PIN.match(line))}


@pytest.fixture(params=["cpu", "gpu"])
def lock(root, request):
    return read(root, request.param)


def test_every_version_is_the_tested_one(root, lock):
    lines = (root / "constraints.txt").read_text().splitlines()
    tested = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    pins = pins_of(lock)
    assert pins == {name: tested.get(name) for name in pins}, "run 'make lock'"


def test_the_cpu_lock_holds_what_serving_needs_and_nothing_else(root):
    pins = pins_of(read(root, "cpu"))
    assert set(pins) == closure(requirements(root)), "run 'make lock'"
    assert not {"torch", "onnx", "onnxscript"} & set(pins)


def test_the_gpu_lock_is_the_cpu_lock_with_cuda(root):
    cpu, gpu = pins_of(read(root, "cpu")), pins_of(read(root, "gpu"))
    assert set(gpu) - set(cpu) == CUDA | {"onnxruntime-gpu"}, "run 'make lock'"
    assert set(cpu) - set(gpu) == {"onnxruntime"}
    assert {name: gpu[name] for name in set(cpu) & set(gpu)} == {name: cpu[name] for name in set(cpu) & set(gpu)}


def test_cuda_is_that_of_the_oldest_driver_of_its_line(root):
    # CUDA 13 begins with drivers of the 580 line; they may refuse code that nvrtc and nvjitlink of a later 13.x write.
    pins = pins_of(read(root, "gpu"))
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-nvjitlink"):
        assert pins[name].startswith("13.0."), name


def test_every_package_has_hashes_and_no_line_names_an_index(lock):
    hashed = {line.split("==")[0] for line, after in itertools.pairwise(lock) if "--hash=sha256:" in after}
    assert {line.split("==")[0] for line in lock if PIN.match(line)} <= hashed
    other = [line for line in lock if not PIN.match(line) and not re.match(r"^    --hash=sha256:[0-9a-f]{64}", line)]
    assert [line for line in other if not line.startswith("#")] == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_bill_of_materials_lists_what_the_lock_installs(root, device):
    bill = json.loads((root / f"requirements/serve-{device}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "panther-sketch"
    listed = {canonicalize_name(item["name"]): item["version"] for item in bill["components"]}
    lines = read(root, device)
    assert listed == pins_of(lines)
    hashes = {
        entry["content"] for item in bill["components"] for ref in item["externalReferences"] for entry in ref["hashes"]
    }
    assert hashes == set(re.findall(r"--hash=sha256:([0-9a-f]{64})", "\n".join(lines)))

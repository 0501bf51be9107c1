"""requirements/serve-cpu.lock against its two sources: the pins, and what the installed packages say they need."""

import importlib.metadata
import itertools
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+?)(?: ;.*)? \\$")


def requirements(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["cpu"]]


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


@pytest.fixture(scope="module")
def lock(root):
    return (root / "requirements/serve-cpu.lock").read_text().splitlines()


@pytest.fixture(scope="module")
def pins(lock):
    return {canonicalize_name(match[1]): match[2] for line in lock if (match := PIN.match(line))}


def test_every_version_is_the_tested_one(root, pins):
    lines = (root / "constraints.txt").read_text().splitlines()
    tested = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert pins == {name: tested.get(name) for name in pins}, "run 'make lock'"


def test_it_holds_what_serving_needs_and_nothing_else(root, pins):
    assert set(pins) == closure(requirements(root)), "run 'make lock'"
    assert not {"torch", "onnx", "onnxscript"} & set(pins)


def test_every_package_has_hashes_and_no_line_names_an_index(lock):
    hashed = {line.split("==")[0] for line, after in itertools.pairwise(lock) if "--hash=sha256:" in after}
    assert {line.split("==")[0] for line in lock if PIN.match(line)} <= hashed
    other = [line for line in lock if not PIN.match(line) and not re.match(r"^    --hash=sha256:[0-9a-f]{64}", line)]
    assert [line for line in other if not line.startswith("#")] == []

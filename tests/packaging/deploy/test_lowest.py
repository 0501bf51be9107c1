"""requirements/lowest.txt against pyproject.toml: what 'make test-lowest' installs are the lower bounds."""

import re
import shlex
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = ("client", "cpu", "grpc", "otel", "train")
AS_TESTED = {"torch"}


def pins(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


@pytest.fixture(scope="module")
def requirements(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def test_every_requirement_is_pinned_at_its_lower_bound(root, requirements):
    lowest, tested = pins(root / "requirements/lowest.txt"), pins(root / "constraints.txt")
    assert len(requirements) > 15
    for name, requirement in requirements.items():
        (bound,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        wanted = Version(tested[name]) if name in AS_TESTED else bound
        assert Version(lowest[name]) == wanted, f"{name}: run 'make lock'"
        assert bound <= Version(tested[name]), f"{name}: constraints.txt is below the lower bound"


def test_the_extras_and_the_tests_are_those_of_the_makefile(root):
    shown = subprocess.run(
        ["make", "--dry-run", "test-lowest"], cwd=root, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    extras = re.search(r"scripts/environment \.venv-lowest (\S+) requirements/lowest\.txt", shown)[1]
    assert extras.split(",") == sorted([*EXTRAS, "test"])
    (line,) = [line for line in shown.splitlines() if "-m pytest" in line]
    paths = [word for word in shlex.split(line) if word.startswith("tests/")]
    assert len(paths) > 10
    assert [path for path in paths if not (root / path).exists()] == []

"""GitHub's workflows and the dev container: valid, and consistent with the repository."""

import json
import os
import re
import subprocess
import tomllib

import pytest
import yaml

import app


@pytest.fixture(scope="module")
def workflows(root):
    return {path.stem: yaml.safe_load(path.read_text()) for path in (root / ".github/workflows").glob("*.yml")}


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_ci_runs_what_ci_runs(workflows, root):
    assert [step["run"] for step in steps(workflows["ci"]) if "run" in step][-1] == ".ci/run"
    assert os.access(root / ".ci/run", os.X_OK)


def test_the_shell_of_each_step_parses_and_only_known_actions_are_used(workflows):
    for workflow in workflows.values():
        assert workflow["permissions"] == {"contents": "read"}
        for step in steps(workflow):
            if "run" in step:
                script = re.sub(r"\$\{\{.*?\}\}", "x", step["run"])
                subprocess.run(["bash", "-n"], input=script, text=True, check=True)
            else:
                assert re.fullmatch(r"(actions|docker|pypa)/[\w-]+@(v\d+|release/v1)", step["uses"])


def test_a_release_adds_the_addresses_and_checks_the_tag(workflows, root, tmp_path):
    (tmp_path / "pyproject.toml").write_text((root / "pyproject.toml").read_text())
    scripts = {step["name"]: step["run"] for step in steps(workflows["release"]) if "run" in step}
    environment = {
        **os.environ,
        "GITHUB_SERVER_URL": "https://host.example",
        "GITHUB_REPOSITORY": "owner/name",
        "GITHUB_REF_NAME": f"v{app.__version__}",
    }
    for name in ("Check that the tag is the version", "Add the project's addresses"):
        subprocess.run(["bash", "-e", "-c", scripts[name]], cwd=tmp_path, env=environment, check=True)
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]
    assert set(urls) == {"Source", "Documentation", "Issues", "Changelog"}
    assert urls["Source"] == "https://host.example/owner/name"
    assert all(url.startswith(urls["Source"]) for url in urls.values())


def test_images_are_targets_of_the_dockerfile(workflows, root):
    targets = workflows["release"]["jobs"]["images"]["strategy"]["matrix"]["target"]
    text = (root / "Dockerfile").read_text()
    assert all(f" AS {target}\n" in text for target in targets)


def test_the_dev_container_makes_the_environment_of_the_makefile(root):
    container = json.loads((root / ".devcontainer/devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make dev-env"
    assert re.search(r"^dev-env:", (root / "Makefile").read_text(), re.MULTILINE)
    assert container["forwardPorts"] == [8000]

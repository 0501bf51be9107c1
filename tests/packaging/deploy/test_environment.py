"""scripts/environment on a project of one file, which needs no index of packages; 'make test-make' asks for these."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.environment

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "thing"
version = "1"
requires-python = ">=3.11"

[project.optional-dependencies]
more = []
"""

BACKEND = """
import os, pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    if pathlib.Path("broken").exists():
        raise SystemExit("the build is broken")
    name, info = "thing-1-py3-none-any.whl", "thing-1.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("thing.pth", os.getcwd())
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: thing\\nVersion: 1\\nProvides-Extra: more\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


class Project:
    """The small project, its environment .env, and a file in it that tells whether it was made anew."""

    def __init__(self, folder, root):
        self.folder = folder
        (folder / "scripts").mkdir(parents=True)
        shutil.copy(root / "scripts/environment", folder / "scripts")
        (folder / "pyproject.toml").write_text(PYPROJECT)
        (folder / "constraints.txt").write_text("# none\n")
        (folder / "backend.py").write_text(BACKEND)
        (folder / "thing.py").write_text("here = __file__\n")

    def make(self, python=sys.executable, **variables):
        command = [self.folder / "scripts/environment", ".env", "more"]
        env = os.environ | {"PYTHON": str(python)} | variables
        return subprocess.run(
            command,
            check=False,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def python(self, code):
        command = [self.folder / ".env/bin/python", "-c", code]
        return subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout.strip()

    @property
    def sign(self):
        return self.folder / ".env/sign"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, root):
    """A project with its environment made, once for all tests that leave it so."""
    project = Project(tmp_path_factory.mktemp("shared") / "project", root)
    answer = project.make()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    project.sign.touch()
    return project


@pytest.fixture
def bare(tmp_path, root):
    return Project(tmp_path / "project", root)


def script(path, text):
    path.write_text("#!/bin/bash\n" + textwrap.dedent(text))
    path.chmod(0o755)
    return path


def test_the_project_is_installed_and_a_second_run_does_nothing(shared):
    assert shared.python("import thing; print(thing.here)") == str(shared.folder / "thing.py")
    answer = shared.make()
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert shared.sign.exists()


def test_neither_a_file_time_nor_a_tool_setting_makes_it_anew(shared):
    pyproject = shared.folder / "pyproject.toml"
    pyproject.write_text(PYPROJECT + "\n[tool.pytest]\nx = 1\n")
    (shared.folder / "constraints.txt").touch()
    assert shared.make().returncode == 0
    assert shared.sign.exists()


def test_changed_pins_make_it_anew_and_so_does_a_move(bare, tmp_path):
    assert bare.make().returncode == 0
    bare.sign.touch()
    (bare.folder / "constraints.txt").write_text("numpy==2.0.0\n")
    assert bare.make().returncode == 0
    assert not bare.sign.exists()
    bare.sign.touch()
    bare.folder = bare.folder.rename(tmp_path / "moved")
    assert bare.make().returncode == 0
    assert not bare.sign.exists()
    assert bare.python("import thing; print(thing.here)") == str(bare.folder / "thing.py")


def test_a_half_made_environment_does_not_count(bare):
    (bare.folder / "broken").touch()
    answer = bare.make()
    assert answer.returncode == 1
    assert "error: .env could not be made; run the same command again" in answer.stderr
    bare.sign.touch()
    (bare.folder / "broken").unlink()
    assert bare.make().returncode == 0
    assert not bare.sign.exists()
    assert bare.python("import thing") == ""


def test_what_is_set_on_the_machine_does_not_reach_in(bare, tmp_path):
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "sitecustomize.py").write_text("raise SystemExit('a stray module was imported')\n")
    (stray / "thing.py").write_text("here = 'stray'\n")
    pip_conf = tmp_path / "pip.conf"
    pip_conf.write_text(f"[install]\nuser = true\ntarget = {stray}\n[global]\nconstraint = {tmp_path}/missing.txt\n")
    answer = bare.make(
        PYTHONPATH=str(stray),
        PYTHONUSERBASE=str(stray),
        PYTHONHOME="/nonexistent",
        PIP_CONFIG_FILE=str(pip_conf),
        PIP_USER="1",
        PIP_TARGET=str(stray),
        PIP_PREFIX=str(stray),
        PIP_NO_DEPS="1",
        VIRTUAL_ENV=str(stray),
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert sorted(path.name for path in stray.iterdir()) == ["sitecustomize.py", "thing.py"]
    assert bare.python("import thing; print(thing.here)") == str(bare.folder / "thing.py")


def test_an_old_python_is_refused_by_its_version(bare, tmp_path):
    code = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])"
    old = script(tmp_path / "old-python", f'exec {sys.executable} -I -c "{code}" "$3"\n')
    answer = bare.make(python=old)
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: '{old}' is Python 3.9; 3.11 or newer is needed\nerror: ")
    assert "make PYTHON=" in answer.stderr
    assert not (bare.folder / ".env").exists()


def test_no_python_at_all_is_said(bare):
    answer = bare.make(python="python9")
    assert answer.returncode == 1
    assert "error: there is no 'python9' on the PATH; Python 3.11 or newer is needed" in answer.stderr


def test_a_missing_venv_module_is_installed_by_root_and_named_to_others(bare, tmp_path):
    # A Python that has no ensurepip until a package manager, which writes down what it was asked, brings it.
    tools = tmp_path / "tools"
    tools.mkdir()
    script(tools / "apt-get", f'echo "$@" >>{tmp_path}/asked\n[[ $1 != install ]] || touch {tmp_path}/installed\n')
    lacking = script(
        tmp_path / "lacking-python",
        f"""\
        [[ $* != *"import ensurepip"* || -e {tmp_path}/installed ]] || exit 1
        exec {sys.executable} "$@"
        """,
    )
    answer = bare.make(python=lacking, PATH=f"{tools}:{os.environ['PATH']}")
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if os.geteuid() == 0:
        assert answer.returncode == 0, answer.stdout + answer.stderr
        asked = (tmp_path / "asked").read_text().splitlines()
        assert asked == ["update", f"install -y --no-install-recommends {package}"]
    else:
        assert answer.returncode == 1
        assert f"apt-get update && apt-get install -y --no-install-recommends {package}" in answer.stderr

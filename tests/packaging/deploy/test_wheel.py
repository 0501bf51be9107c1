"""The wheel, built and unpacked as pip would: it serves, and leaves the name ``app`` to its user."""

import os
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest

READY_SECONDS = 60


def test_the_wheel_is_described_to_have_no_top_level_app(root):
    """What is built is tested below; this one is quick and always runs."""
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    tops = {wheel["sources"].get(name.split("/")[0], name).split("/")[0] for name in wheel["only-include"]}
    assert tops == {"panther", "panther_client", "panther_server"}
    assert all((root / name).exists() for name in wheel["only-include"])


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(root)]
    environment = {
        **os.environ,
        "PIP_BUILD_CONSTRAINT": str(root / "constraints.txt"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    subprocess.run(command, check=True, env=environment)
    (wheel,) = folder.glob("panther_sketch-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def user(site, tmp_path, plain_env):
    """Runs Python in a folder where a user has a package ``app``, with the wheel on the path."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("MINE = True\n")

    def start(*arguments, **options):
        environment = {**plain_env, "PYTHONPATH": str(site), "ORT_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.STDOUT, **options)

    return start


@pytest.mark.environment
@pytest.mark.timeout(300)
def test_a_user_s_own_app_is_imported(user, site):
    assert sorted(path.name for path in site.iterdir() if path.suffix != ".dist-info") == [
        "panther",
        "panther_client",
        "panther_server",
    ]
    code = "import app, panther, panther_client; print(app.MINE, panther.__file__)"
    printed, _ = user("-c", code, stdout=subprocess.PIPE).communicate(timeout=60)
    assert printed == f"True {site / 'panther' / '__init__.py'}\n"


@pytest.mark.environment
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2])
def test_the_wheel_serves_its_sample(user, tmp_path, site, free_port, workers):
    copied, _ = user("-m", "panther.cli", "sample", stdout=subprocess.PIPE).communicate(timeout=60)
    assert "panther serve --model-dir models" in copied
    port, log = free_port(), tmp_path / "log"
    arguments = ("--port", str(port), "--device", "cpu", "--workers", str(workers))
    with log.open("w") as stream:
        server = user("-m", "panther.cli", "serve", *arguments, stdout=stream)
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_SECONDS
            while True:
                try:
                    if httpx.get(f"{address}/health/ready", timeout=60).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            answer = httpx.post(f"{address}/predict", content=(tmp_path / "digit.json").read_bytes(), timeout=60)
            assert answer.json()["predictions"][0]["label"] == "2"
            environment = Path(f"/proc/{server.pid}/environ").read_text().split("\0")
            assert f"PYTHONPATH={site / 'panther_server'}{os.pathsep}{site}" in environment
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0

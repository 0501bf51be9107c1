import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.config.limits import Limits
from app.config.settings import Settings
from app.config.settings_file import SettingsError
from app.config.settings_sources import effective, ignored_variables, read_settings
from app.process.sockets import BindError, bind
from app.service.access import Access
from app.system import cpus

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PANTHER_{name.upper()}", raising=False)


def test_command_line_before_environment_before_default(monkeypatch):
    assert read_settings([]).port == 8000
    monkeypatch.setenv("PANTHER_PORT", "9000")
    monkeypatch.setenv("PANTHER_DEVICE", "cpu")
    settings = read_settings(["--port", "9001", "--model-dir", "elsewhere"])
    assert (settings.port, settings.device, settings.model_dir) == (9001, "cpu", Path("elsewhere"))


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("PANTHER_DEFAULT_MODEL", "")
    assert read_settings([]).default_model is None


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("PORT", "abc", "input should be a valid integer"),
        ("PORT", "70000", "input should be less than or equal to 65535"),
        ("PORT", "tcp://10.0.0.1:80", "input should be a valid integer"),
        ("DEVICE", "tpu", "input should be 'auto', 'cpu' or 'cuda'"),
        ("NUM_THREADS", "0", "input should be greater than or equal to 1"),
        ("MAX_BODY_BYTES", "-1", "input should be greater than or equal to 1024"),
        ("SHUTDOWN_TIMEOUT_S", "100000", "input should be less than or equal to 86400"),
        ("BODY_TIMEOUT_S", "1e-9", "input should be greater than or equal to 0.05"),
        ("VERSION_POLICY", "newest", "must be latest, all, or version numbers"),
        ("LOG_FORMAT", "xml", "input should be 'console' or 'json'"),
    ],
)
def test_a_wrong_value_names_variable_value_and_rule(monkeypatch, name, value, rule):
    monkeypatch.setenv(f"PANTHER_{name}", value)
    flag = "--" + name.lower().replace("_", "-")
    with pytest.raises(SettingsError, match=re.escape(f"PANTHER_{name} (or {flag}): '{value}' is not valid: {rule}")):
        read_settings([])
    monkeypatch.delenv(f"PANTHER_{name}")
    if not value.startswith("-"):
        with pytest.raises(SettingsError, match=re.escape(f"'{value}' is not valid: {rule}")):
            read_settings([flag, value])


def write(path, text):
    path.write_text(text)
    return str(path)


def test_the_file_is_weaker_than_the_environment_and_that_than_a_flag(monkeypatch, tmp_path):
    file = write(tmp_path / "panther.toml", 'port = 9001\nworkers = 2\nmodel_dir = "there"\nlog_level = "debug"\n')
    monkeypatch.setenv("PANTHER_PORT", "9002")
    monkeypatch.setenv("PANTHER_WORKERS", "3")
    settings = read_settings(["--config", file, "--workers", "4"])
    assert (settings.workers, settings.port, settings.model_dir, settings.log_level) == (
        4,
        9002,
        Path("there"),
        "debug",
    )
    assert settings.num_threads is None
    shown = effective(settings)
    assert shown["workers"] == (4, "--workers")
    assert shown["port"] == (9002, "PANTHER_PORT")
    assert shown["model_dir"] == ("there", "file")
    assert shown["host"] == ("127.0.0.1", None)


def test_the_environment_may_name_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("PANTHER_CONFIG", write(tmp_path / "a.toml", "port = 9001\n"))
    assert read_settings([]).port == 9001
    assert Settings().port == 9001
    assert read_settings(["--config", write(tmp_path / "b.toml", "port = 9003\n")]).port == 9003


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", r"unknown key 'prot' in the settings file '.*panther.toml'; did you mean 'port'\?"),
        ("max-batch-rows = 1", r"unknown key 'max-batch-rows' .*; did you mean 'max_batch_rows'\?"),
        ("zzz = 1", r"unknown key 'zzz' .*; known: .*compression_min_bytes, "),
        ("[server]\nport = 1", r"unknown key 'server'"),
        ('config = "other.toml"', r"unknown key 'config'"),
        ("port = ", r"the settings file .*panther.toml' is not valid TOML: Invalid value"),
        ('port = "abc"', r"port in the settings file: 'abc' is not valid: input should be a valid integer"),
        ("port = 99999", r"port in the settings file: 99999 is not valid: .*less than or equal to 65535"),
        ("port = " + 5000 * "9", r"the settings file .*panther.toml' is not valid TOML: .*4300 digits"),
        ("port = " + 5000 * "[", r"the settings file .*panther.toml' is not valid TOML: .*nested too deep"),
        ("predict_keys = []", r"predict_keys holds no keys, which refuses every request"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, text, said):
    with pytest.raises(SettingsError, match=said):
        Access.of(read_settings(["--config", write(tmp_path / "panther.toml", text)]))


def test_files_as_windows_editors_write_them_are_read(tmp_path):
    keys = tmp_path / "keys"
    keys.write_bytes("# the shop\r\na-key-0123456789\r\n".encode("utf-8-sig"))
    config = tmp_path / "panther.toml"
    config.write_bytes(f"port = 9003\r\npredict_keys_file = '{keys}'\r\n".encode("utf-8-sig"))
    settings = read_settings(["--config", str(config)])
    assert settings.port == 9003
    Access.of(settings).check_predict({b"x-api-key": b"a-key-0123456789"})
    keys.write_bytes("a-key-9876543210\r\n".encode("utf-8-sig"))
    Access.of(settings).check_predict({b"x-api-key": b"a-key-9876543210"})


def test_keys_that_are_none_are_refused():
    with pytest.raises(SettingsError, match=r"^control_keys holds no keys"):
        Access.of(read_settings(["--control-keys", ","]))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"the settings file '.*none.toml' can't be read: No such file"):
        read_settings(["--config", str(tmp_path / "none.toml")])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prot", "8"], r"unknown flag --prot; did you mean --port\?"),
        (["--max_batch_row=8"], r"unknown flag --max_batch_row=8; did you mean --max-batch-rows\?"),
        (["--port"], r"argument --port: expected one argument"),
        (["models"], r"unrecognized arguments: models"),
    ],
)
def test_a_wrong_command_line_is_answered_with_a_hint(arguments, said):
    with pytest.raises(SettingsError, match=said):
        read_settings(arguments)


def test_a_misspelt_variable_is_warned_of_and_others_are_not(monkeypatch):
    monkeypatch.setenv("PANTHER_MAX_BATCH_ROW", "3")
    monkeypatch.setenv("PANTHER_PUBLISHED_PORT", "3")
    assert ignored_variables() == [
        "PANTHER_MAX_BATCH_ROW is not a setting and is ignored; did you mean PANTHER_MAX_BATCH_ROWS?"
    ]


@pytest.mark.parametrize("form", ["console", "json"])
def test_the_start_tells_the_settings_in_one_record(form):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--port", str(port), PANTHER_LOG_FORMAT=form, PANTHER_WORKERS="1")
    told = [line for line in ended.stderr.splitlines() if "settings: " in line]
    assert len(told) == 1
    if form == "json":
        line = json.loads(told[0])
        assert line["settings"]["port"] == port
        assert set(line["settings"]) == set(Settings.model_fields)
        assert line["settings_from"] == {
            "port": "--port",
            "log_format": "PANTHER_LOG_FORMAT",
            "workers": "PANTHER_WORKERS",
        }
    else:
        assert f"port={port} (from --port)" in told[0]
        assert "host=127.0.0.1," in told[0]
        assert "workers=1 (from PANTHER_WORKERS)" in told[0]


def test_panther_serve_is_the_server_by_another_name(tmp_path):
    (tmp_path / "app").mkdir()  # a folder of the user's own, which must not be taken for the server
    (tmp_path / "app" / "__init__.py").write_text("")
    panther = Path(sys.executable).parent / "panther"

    def serve(*arguments):
        return subprocess.run(
            [panther, "serve", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": "/usr/bin"},
        )

    shown = serve("--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: panther serve ")
    assert "--model-dir" in shown.stdout
    wrong = serve("--port", "abc")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "error: PANTHER_PORT (or --port): 'abc' is not valid: input should be a valid integer, "
        "unable to parse string as an integer\n",
    )


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            "onnxruntime",
            "onnxruntime is not installed; install it: pip install 'panther-sketch[cpu]', or [gpu] for CUDA",
        ),
        ("fastapi", "fastapi is not installed; install the extra: pip install 'panther-sketch[cpu]'"),
    ],
)
def test_panther_serve_says_what_is_not_installed(monkeypatch, missing, said):
    import importlib.util

    from typer.testing import CliRunner

    from panther.cli import commands

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    monkeypatch.setattr(commands.os, "execv", lambda *_: pytest.fail("it was started"))
    ended = CliRunner().invoke(commands.app, ["serve", "--port", "0"])
    assert ended.exit_code == 1
    assert said in " ".join(ended.output.split())


def test_settings_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Settings().port = 1


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin", **environment},
    )


def test_a_wrong_value_ends_the_program_without_a_traceback():
    ended = run(PANTHER_PORT="abc")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: PANTHER_PORT (or --port): 'abc' is not valid")
    assert "Traceback" not in ended.stderr


def test_a_host_that_no_machine_can_have_is_said_clearly(tmp_path):
    ended = run("--config", write(tmp_path / "panther.toml", 'host = "a\\u0000b"'))
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert r"error: can't listen on 'a\x00b:8000': a host name must not contain a null character" in ended.stderr


def test_a_port_already_taken_is_said_clearly():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--port", str(port))
        assert ended.returncode == 1
        assert (
            f"can't listen on 127.0.0.1:{port}: Address already in use; choose another with --host and --port"
            in ended.stderr
        )
        assert "Traceback" not in ended.stderr
        with pytest.raises(BindError, match="already in use"):
            bind("127.0.0.1", port)


def test_help_explains_every_setting():
    ended = run("--help")
    assert ended.returncode == 0
    text = " ".join(ended.stdout.split())
    for name, field in Settings.model_fields.items():
        assert "--" + name.replace("_", "-") in text
        assert field.description in text.replace("- ", "-") or field.description.split(";")[0][:20] in text


def test_every_setting_is_documented_with_its_default():
    docs = (ROOT / "docs" / "settings.md").read_text()
    rows = {
        match["variable"]: match
        for match in re.finditer(
            r"^\| `(?P<variable>PANTHER_\w+)` \| `(?P<flag>--[\w-]+)` \| (?P<default>[^|]+) \|", docs, re.M
        )
    }
    assert set(rows) == {f"PANTHER_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        row = rows[f"PANTHER_{name.upper()}"]
        assert row["flag"] == "--" + name.replace("_", "-")
        if field.default is not None:
            assert (
                row["default"].strip()
                == f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
            )


@pytest.mark.parametrize(
    ("files", "mask", "cores"),
    [
        ({"v2": "max 100000"}, 4, 4),
        ({"v2": "150000 100000"}, 4, 2),
        ({"v2": "50000 100000"}, 4, 1),
        ({"v2": "800000 100000"}, 4, 4),
        ({"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 8, 2),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 8, 8),
        ({}, 3, 3),
    ],
)
def test_cores_are_those_of_mask_and_quota(monkeypatch, tmp_path, files, mask, cores):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cpus, "_CGROUP_V2", tmp_path / "v2")
    monkeypatch.setattr(cpus, "_CGROUP_V1", tmp_path)
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: set(range(mask)))
    assert cpus.available_cores() == cores


def test_limits_take_their_defaults_from_the_settings():
    assert Limits() == Limits.of(Settings())
    assert Limits.of(Settings(max_connections=7)).max_connections == 7

"""docker-compose.yml and Dockerfile against the server's settings; needs no engine."""

import re

import pytest
import yaml

import app
from app.config.settings import ENV_PREFIX, Settings


@pytest.fixture(scope="module")
def server(root):
    return yaml.safe_load((root / "docker-compose.yml").read_text())["services"]["server"]


def test_every_setting_of_the_server_can_be_set_and_no_other(server):
    settings = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    assert set(server["environment"]) == settings, "name each under 'environment' of docker-compose.yml"


def test_only_where_it_listens_and_reads_is_fixed(server):
    fixed = {name: value for name, value in server["environment"].items() if value is not None}
    assert fixed == {
        "PANTHER_HOST": "0.0.0.0",
        "PANTHER_PORT": 8000,
        "PANTHER_GRPC_PORT": 8001,
        "PANTHER_MODEL_DIR": "/models",
        "PANTHER_DEVICE": "${PANTHER_DEVICE:-cpu}",
    }
    assert server["volumes"] == ["${PANTHER_MODELS:-./models}:/models:ro"]


def test_a_variable_of_compose_never_has_the_name_of_another_setting(root):
    """A setting may only have its own variable as its value, with the image's default."""
    text = (root / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{(\w+)", re.sub(r"^ +(\w+): \$\{\1:-\w+\}$", "", text, flags=re.MULTILINE)))
    assert used
    assert not used & {ENV_PREFIX + name.upper() for name in Settings.model_fields}


def test_each_service_runs_on_the_device_of_its_image_by_default(root):
    """Without a value Compose would unset the image's own, and the server would look for a GPU and warn."""
    services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    devices = {name: one["environment"].get("PANTHER_DEVICE") for name, one in services.items() if "environment" in one}
    assert {name: device for name, device in devices.items() if device} == {
        "server": "${PANTHER_DEVICE:-cpu}",
        "replica": "${PANTHER_DEVICE:-cpu}",
        "gpu": "${PANTHER_DEVICE:-cuda}",
    }
    assert set(services["gpu"]["environment"]) == set(services["server"]["environment"])


def test_the_image_sets_what_compose_sets(root, server):
    text = (root / "Dockerfile").read_text()
    for name, value in server["environment"].items():
        default = re.sub(r"^\$\{\w+:-(\w+)\}$", r"\1", str(value))
        assert value is None or f"{name}={default}" in text


def test_the_image_has_the_version_of_the_package(root):
    assert f"ARG VERSION={app.__version__}\n" in (root / "Dockerfile").read_text()


def test_the_document_names_every_variable_of_the_compose_files(root):
    text = (root / "docs/deployment.md").read_text() + (root / "docs/training.md").read_text()
    files = [(root / name).read_text() for name in ("docker-compose.yml", "docker-compose.train.yml")]
    used = {name for file in files for name in re.findall(r"\$\{(\w+)", file)}
    assert {name for name in used if f"`{name}" not in text} == set()


def test_what_grafana_is_given_lies_where_it_is_told_to_look(root):
    services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    folder = root / "deploy/grafana/provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards/panther.yml").read_text())["providers"]
    dashboard = mounts["./deploy/grafana/panther.json"]
    assert dashboard.startswith(provider["options"]["path"] + "/")
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert services[host]["ports"][0].endswith(f":{port}")


def test_prometheus_asks_the_services_that_serve(root):
    services = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    (scrape,) = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    assert set(found["names"]) == {
        name for name, service in services.items() if "PANTHER_PORT" in service.get("environment", {})
    }
    assert found["port"] == services["server"]["environment"]["PANTHER_PORT"]


def test_the_gateway_asks_twice_for_predictions_alone(root, tmp_path):
    from app.application import create_app

    text = (root / "deploy/nginx/nginx.conf").read_text()
    (pattern,) = re.findall(r"location ~ (\S*infer\S*) \{\s+proxy_next_upstream [^;]*non_idempotent;", text)
    # Once there, and once where such a request begins anew.
    assert text.count("non_idempotent;") == 2
    posted = {
        re.sub(r"\{\w+\}", "a", path)
        for path, methods in create_app(Settings(model_dir=tmp_path, device="cpu")).openapi()["paths"].items()
        if "post" in methods
    }
    predictions = {path for path in posted if path.endswith(("/predict", "/infer"))}
    assert len(predictions) >= 5
    assert posted - predictions
    assert {path for path in posted if re.search(pattern, path)} == predictions


def test_the_gateway_refuses_what_would_reach_one_replica_alone(root):
    (pattern,) = re.findall(
        r"location ~ (\S*unload\S*) \{\s+return 403", (root / "deploy/nginx/nginx.conf").read_text()
    )
    assert re.search(pattern, "/v2/repository/models/digits/load")
    assert re.search(pattern, "/v2/repository/models/digits/unload")
    assert not re.search(pattern, "/v2/repository/index")

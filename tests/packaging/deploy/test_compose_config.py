"""Every combination of files and profiles, as 'docker compose config' reads it; starts nothing."""

import json

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(60)]

TRAIN = ("--file", "docker-compose.yml", "--file", "docker-compose.train.yml")


@pytest.fixture(scope="module")
def config(docker, root, plain_env):
    def read(*arguments):
        command = ["compose", *arguments, "config", "--format", "json"]
        return json.loads(docker(*command, cwd=root, env=plain_env).stdout)["services"]

    return read


@pytest.mark.parametrize(
    ("arguments", "services"),
    [
        ((), {"server"}),
        (("--profile", "gpu"), {"server", "gpu"}),
        (("--profile", "scale"), {"server", "replica", "gateway"}),
        (("--profile", "observability"), {"server", "prometheus", "grafana"}),
        ((*TRAIN, "--profile", "train"), {"server", "train"}),
        ((*TRAIN, "--profile", "*"), {"server", "gpu", "replica", "gateway", "prometheus", "grafana", "train"}),
    ],
)
def test_profiles_have_their_services(config, arguments, services):
    assert set(config(*arguments)) == services


def test_nothing_has_a_privilege_or_a_port_for_others(config):
    published = []
    for name, service in config(*TRAIN, "--profile", "*").items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert int(service["mem_limit"]) > 0, name
        assert not {"privileged", "cap_add", "pid", "network_mode"} & set(service), name
        ports = service.get("ports", [])
        assert {port["host_ip"] for port in ports} <= {"127.0.0.1"}, name
        published += [port["published"] for port in ports]
    assert len(published) == len(set(published)), "two services publish on one port"


def test_the_service_gpu_asks_for_a_gpu_and_builds_its_image(config):
    gpu = config("--profile", "gpu")["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"], int(device["count"])) == ("nvidia", ["gpu"], 1)
    assert (gpu["build"]["target"], gpu["image"]) == ("gpu", "panther-sketch:gpu")


def test_serving_reads_models_and_training_writes_them(config):
    services = config(*TRAIN, "--profile", "*")
    read_only = {}
    for name in ("server", "gpu", "replica", "train"):
        (mount,) = [mount for mount in services[name]["volumes"] if mount["target"] == "/models"]
        read_only[name] = mount.get("read_only", False)
    assert read_only == {"server": True, "gpu": True, "replica": True, "train": False}
    assert services["server"]["environment"]["PANTHER_MODEL_CONTROL"] == "watch"

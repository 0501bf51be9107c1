"""Prometheus of the profile 'observability' for real, where Debian's is to be had; Grafana is not to be had there."""

import time

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

FROM_DEBIAN = """
FROM python:3.11-slim-bookworm
RUN apt-get update -qq && apt-get install -yqq --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && mkdir /prometheus && chown nobody /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
"""


@pytest.fixture(scope="module")
def stack(make_stack, docker, free_port, client):
    image = "panther-prometheus:test"
    built = docker("build", "--quiet", "--tag", image, "-", input=FROM_DEBIAN, check=False)
    if built.returncode:
        pytest.skip(f"Debian's Prometheus can't be installed: {built.stderr[-300:]}")
    ports = {"PANTHER_PUBLISHED_PORT": str(free_port()), "PANTHER_PROMETHEUS_PORT": str(free_port())}
    stack = make_stack("observability", PANTHER_PROMETHEUS_IMAGE=image, **ports)
    stack.prometheus = client(ports["PANTHER_PROMETHEUS_PORT"])
    try:
        stack.up("server", "prometheus")
        yield stack
    finally:
        stack.down()
        docker("image", "rm", image)


def test_promtool_accepts_configuration_and_rules(stack):
    command = ["exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml"]
    answer = stack.compose(*command, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "rules found" in answer.stdout


def test_the_server_is_found_and_scraped(stack):
    deadline = time.monotonic() + 60
    while True:
        try:
            result = stack.prometheus("/api/v1/query?query=panther_ready")[1]["data"]["result"]
        except OSError:
            result = []
        if result:
            break
        assert time.monotonic() < deadline, stack.compose("logs", "prometheus").stdout
        time.sleep(0.5)
    assert [(sample["metric"]["job"], sample["value"][1]) for sample in result] == [("panther", "1")]


def test_every_rule_is_evaluated_without_an_error(stack):
    groups = stack.prometheus("/api/v1/rules")[1]["data"]["groups"]
    assert {group["name"] for group in groups} == {"panther", "triton-names"}
    assert [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"] == []

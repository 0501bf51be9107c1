"""docs/runbook.md has a section for every alert, and every alert links to its section."""

from __future__ import annotations

import re

import pytest
import yaml

from app import errors


@pytest.fixture(scope="module")
def text(root):
    return (root / "docs" / "runbook.md").read_text(encoding="utf-8")


def alerts(root):
    groups = yaml.safe_load((root / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_every_alert_links_to_its_section(root, text):
    sections = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert sections == [rule["alert"] for rule in alerts(root)]
    for rule in alerts(root):
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_every_section_has_a_symptom_a_command_to_check_and_actions(text):
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        symptom, check, action = (section.find(f"**{part}.**") for part in ("Symptom", "Check", "Action"))
        assert -1 < symptom < check < action, section
        assert re.search(r"^```console\n\$ ", section[check:action], re.MULTILINE), section
        assert re.search(r"^1\. .+\n(.*\n)*2\. ", section[action:], re.MULTILINE), section


def test_the_metrics_of_the_runbook_exist(text, root):
    told = set(re.findall(r"\bpanther_[a-z_]+", text))
    known = set(re.findall(r"`(panther_[a-z_]+)`", (root / "docs" / "metrics.md").read_text(encoding="utf-8")))
    assert len(told) >= 5
    assert told <= known


def test_errors_and_settings_in_the_runbook_exist(text, root):
    for name in re.findall(r"`(\w+Error)`", text):
        assert issubclass(getattr(errors, name), errors.AppError)
    from app.config.settings import Settings

    known = {f"PANTHER_{name.upper()}" for name in Settings.model_fields}
    compose = (root / "docker-compose.yml").read_text(encoding="utf-8")
    for page in ("runbook.md", "troubleshooting.md", "faq.md", "cookbook.md"):
        for name in re.findall(r"PANTHER_[A-Z_]+", (root / "docs" / page).read_text(encoding="utf-8")):
            assert name in known or name in compose, f"{page}: {name}"

"""Configuration, rules and alerts, by Debian's promtool; and a section of the guide for every
alert.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.declared_metrics import declared_metrics
from tests.support.export_cli import ROOT
from tests.support.prometheus import CONFIG, committed_rules, needs_prometheus

UNIT_TESTS = sorted((CONFIG.parent / "tests").glob("*.yml"))
GUIDES = {
    f"docs/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")
}


ALERTS = committed_rules("alert")
RECORDED = committed_rules("record")


def promtool(*arguments: str) -> None:
    run = subprocess.run(
        ["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@needs_prometheus
def test_prometheus_takes_configuration_and_rules() -> None:
    promtool("check", "config", "--lint=all", "--lint-fatal", str(CONFIG))


@needs_prometheus
@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path: Path) -> None:
    promtool("test", "rules", str(path))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_tested_firing_and_silent_and_has_its_section(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    tests = [
        test
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
    ]
    cases = [
        case
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == name
    ]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}
    guide, _, section = alert["annotations"]["runbook"].partition("#")
    assert f"\n### {name}\n" in GUIDES[guide]
    assert section == name.lower()
    assert alert["labels"]["severity"] in ("page", "ticket")


def test_rules_name_only_metrics_that_there_are() -> None:
    declared = declared_metrics()
    for rule in (*ALERTS, *RECORDED):
        for name in re.findall(r"(?<![:\w])diptych_\w+", rule["expr"]):
            assert re.sub(r"_(total|bucket|sum|count)$", "", name) in declared, name

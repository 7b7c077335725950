"""Configuration, rules, alerts and dashboard: promtool accepts them, and what they name exists."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.export_cli import ROOT
from tests.support.monitoring import (
    CONFIG,
    DASHBOARD,
    committed_rules,
    declared_metrics,
    needs_prometheus,
)

UNIT_TESTS = sorted((CONFIG.parent / "tests").glob("*.yml"))


def promtool(*arguments: str) -> None:
    run = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_prometheus
def test_prometheus_takes_configuration_and_rules() -> None:
    promtool("check", "config", "--lint=all", "--lint-fatal", str(CONFIG))


@needs_prometheus
@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_rules_pass_their_tests(path: Path) -> None:
    promtool("test", "rules", str(path))


@pytest.mark.parametrize("alert", committed_rules("alert"), ids=lambda alert: alert["alert"])
def test_an_alert_is_tested_and_documented(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    are_firing = set()
    for path in UNIT_TESTS:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            cases = test.get("alert_rule_test", [])
            are_firing |= {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name}
    assert are_firing == {True, False}
    page, _, section = alert["annotations"]["runbook"].partition("#")
    assert f"\n### {name}\n" in (ROOT / page).read_text(encoding="utf-8")
    assert section == name.lower()
    assert alert["labels"]["severity"] in ("page", "ticket")


EXPRESSIONS = {
    "alerts": [rule["expr"] for rule in committed_rules("alert")],
    "records": [rule["expr"] for rule in committed_rules("record")],
    "dashboard": DASHBOARD,
}


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_metrics_are_declared(place: str) -> None:
    names = re.findall(r"(?<![:\w])diptych_\w+", str(EXPRESSIONS[place]))
    names = [re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names]
    assert names
    assert set(names) <= declared_metrics()


def test_variables_of_the_dashboard_are_declared_and_used() -> None:
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", str(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used == declared

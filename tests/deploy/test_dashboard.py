"""The Grafana dashboard and the compose file, as far as they can be checked without Grafana and
Docker.
"""

import re
from typing import Any

import yaml

from tests.support.dashboard import DASHBOARD
from tests.support.export_cli import ROOT
from tests.support.prometheus import CONFIG

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_every_variable_is_declared_and_used() -> None:
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", str(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used == declared


def test_compose_mounts_what_is_there() -> None:
    mounts = [
        volume for service in COMPOSE["services"].values() for volume in service.get("volumes", [])
    ]
    paths = [DEPLOY / mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(paths) == 4
    assert all(path.exists() for path in paths)


def test_the_parts_find_each_other_by_their_names_in_compose() -> None:
    (job,) = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["diptych:3000"]}]
    sources = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    )
    assert [source["url"] for source in sources["datasources"]] == ["http://prometheus:9090"]
    assert {"diptych", "front", "prometheus", "grafana", "jaeger", "valkey"} == set(
        COMPOSE["services"]
    )


def test_grafana_finds_the_dashboard() -> None:
    provider = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/dashboards/diptych.yml").read_text(encoding="utf-8")
    )
    (path,) = [each["options"]["path"] for each in provider["providers"]]
    assert f"./grafana/dashboards:{path}:ro" in COMPOSE["services"]["grafana"]["volumes"]


def test_no_port_is_open_to_other_hosts() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)

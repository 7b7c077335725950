"""The Grafana dashboard and the compose file, as far as they can be checked without Grafana and
Docker.
"""

import re
from typing import Any

import yaml

from tests.support.dashboard import DASHBOARD
from tests.support.export_cli import ROOT

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


def test_no_port_is_open_to_other_hosts() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)

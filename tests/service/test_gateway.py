"""The gateway's process: what it sets up before it answers."""

import subprocess
import sys

from tests.support.export_cli import ROOT

METRICS = """
from service.gateway import Gateway

print(Gateway.config["metrics"]["enabled"])
"""


def test_gateway_has_no_metrics_of_bentoml() -> None:
    run = subprocess.run(
        [sys.executable, "-c", METRICS], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["False"]

"""The metrics of requests."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from service.telemetry.metrics import (
    EVENT_LOOP_LAG_SECONDS,
    measure_loop_lag,
)
from tests.support.export_cli import ROOT


async def test_lag_of_a_blocked_loop() -> None:
    measuring = asyncio.create_task(measure_loop_lag())
    await asyncio.sleep(0.01)
    before_s = EVENT_LOOP_LAG_SECONDS._sum.get()
    time.sleep(0.4)
    await asyncio.sleep(0.01)
    measuring.cancel()
    assert EVENT_LOOP_LAG_SECONDS._sum.get() - before_s > 0.3


DECLARED_BEFORE = """
import os, sys
import service.supervision.roles  # declares them
from service.telemetry.metrics import REQUEST_MEMORY_BYTES
from wire.telemetry.metric_files import use_metric_files, write_metrics_as

use_metric_files()
write_metrics_as("gateway-0")
REQUEST_MEMORY_BYTES.set(5)
"""


def test_metrics_of_the_checks_are_in_files(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", DECLARED_BEFORE]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)
    assert (tmp_path / "gauge_livesum_gateway-0.db").exists()

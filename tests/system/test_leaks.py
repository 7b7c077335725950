"""Two minutes of the soak: memory, descriptors and threads of every process are flat after
warm-up.
"""

import asyncio
from pathlib import Path

import pytest

from loadtest.soak import SETTINGS, report, soak
from tests.support.export_cli import ModelStore
from tests.support.running_service import running_service

SECONDS = 120


@pytest.mark.long
def test_nothing_grows_under_errors_and_disconnecting_clients(
    exported: ModelStore, tmp_path: Path
) -> None:
    with running_service(exported.home, tmp_path / "service.log", **SETTINGS) as service:
        found = asyncio.run(soak(service.url, service.process.pid, SECONDS))
    print(report(found))
    assert found.unexpected() == {}
    assert found.growing() == {}
    assert len(found.trends()) == 4 * 3  # supervisor, gateway, two runners

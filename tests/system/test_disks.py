"""A read-only or full disk changes nothing but the log.

A full folder in memory costs metrics alone.
"""

import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tasks.table import TASKS
from tests.support.export_cli import ModelStore
from tests.support.running_service import GATEWAY, OPEN, SERVICE, RunningService, running_service
from tests.support.scene_images import scene_png
from tests.system.service_metrics import metric

IN_NAMESPACE = ("unshare", "--mount", "sh", "-ec")
# Each is called with the folder of the test and the command of the service.
READ_ONLY = """
mount -o remount,ro,bind /
if touch "$1/file"; then exit 1; fi
shift
exec "$@"
"""
FULL = """
disk=$1; shift
mount -t tmpfs -o size=100m tmpfs "$disk"
cp -r "$BENTOML_HOME" "$disk/bentoml"
touch "$disk/service.log"
if dd if=/dev/zero of="$disk/fill"; then exit 1; fi
export BENTOML_HOME="$disk/bentoml" HOME="$disk" TMPDIR="$disk"
exec "$@" >> "$disk/service.log" 2>&1  # nor can the log be written
"""
FILL = "dd if=/dev/zero of=/dev/shm/fill 2>/dev/null || true"
SMALL_MEMORY = """
shift
mount -t tmpfs -o size=8m tmpfs /dev/shm
exec "$@"
"""
STOP_S = 60
# Each adds values to the files of metrics, together more than fit into those of the start.
SIMPLE_TASKS = [id for id, task in TASKS.items() if not task.required + task.exactly_one_of]

pytestmark = pytest.mark.skipif(
    subprocess.run([*IN_NAMESPACE, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode
    != 0,
    reason="no mounts are permitted here: what a full or read-only disk does is NOT tested",
)


def answers(service: RunningService, task: str = "captioning") -> bool:
    """Send some MB: bodies of more than one lie in a file while they are read."""
    return service.predict(scene_png() + bytes(3_000_000), task=task).is_success


def served_with(
    exported: ModelStore, folder: Path, script: str
) -> AbstractContextManager[RunningService]:
    """Serve one model in a mount namespace that `script` has prepared with a disk at `folder`."""
    disk = folder / "disk"
    disk.mkdir()
    command = (*IN_NAMESPACE, script, "sh", str(disk), *SERVICE)
    log = folder / "service.log"
    return running_service(exported.home, log, OPEN, command, DIPTYCH_MODELS="florence-2-mini")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(READ_ONLY, marks=pytest.mark.long, id="read-only"),
        pytest.param(FULL, id="full"),
    ],
)
def test_disk_changes_nothing(exported: ModelStore, tmp_path: Path, script: str) -> None:
    with served_with(exported, tmp_path, script) as service:
        assert all(answers(service) for _ in range(3))
        assert metric(service, "diptych_requests_total", status="ok") == 3
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOP_S) == 0


@pytest.mark.long
def test_memory_that_fills_costs_metrics_alone(exported: ModelStore, tmp_path: Path) -> None:
    with served_with(exported, tmp_path, SMALL_MEMORY) as service:
        assert answers(service)
        parts = service.parts()
        command = ["nsenter", "-m", "-t", str(parts[GATEWAY]), "sh", "-c", FILL]
        subprocess.run(command, check=True)
        assert all(answers(service, task) for task in SIMPLE_TASKS)
        with service.client() as client:
            assert client.get("/metrics").status_code == 200
        assert service.parts() == parts

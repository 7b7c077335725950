"""A read-only or a full disk under everything that the service reads and writes changes nothing but the log."""

import io
import signal
import subprocess
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.support.export_cli import ModelStore
from tests.support.running_service import OPEN, SERVICE, RunningService, running_service
from tests.support.service_metrics import metric
from tests.system.test_batches import create, ended, openai_client, predict_line

IN_NAMESPACE = ("unshare", "--mount", "sh", "-ec")
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
SMALL = """
mount -t tmpfs -o size=3m tmpfs "$1"
shift
exec "$@"
"""
STOP_S = 60

pytestmark = pytest.mark.skipif(
    subprocess.run([*IN_NAMESPACE, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode != 0,
    reason="no mounts are permitted here: what a full or read-only disk does is not tested",
)


def large_image() -> bytes:
    """Return a file of some MB: bodies of more than one lie in a file while they are read."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def answers(service: RunningService) -> bool:
    form = {"task": "captioning", "detail": "detailed"}
    response = httpx.post(f"{service.url}/v1/predict", data=form, files={"image": large_image()}, timeout=60)
    return response.is_success and "result" in response.json()


@pytest.mark.parametrize("script", [READ_ONLY, FULL], ids=["read-only", "full"])
def test_the_service_starts_answers_counts_and_stops(exported: ModelStore, tmp_path: Path, script: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = (*IN_NAMESPACE, script, "sh", str(disk), *SERVICE)
    log, models = tmp_path / "service.log", {"DIPTYCH_MODELS": "florence-2-mini"}
    with running_service(exported.home, log, OPEN, command, **models) as service:
        assert all(answers(service) for _ in range(3))
        assert metric(service, "diptych_requests_total", status="ok") == 3
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOP_S) == 0


def test_files_that_do_not_fit_on_the_disk_are_refused_until_there_is_room(
    exported: ModelStore, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = (*IN_NAMESPACE, SMALL, "sh", str(disk), *SERVICE)
    settings = {"DIPTYCH_MODELS": "florence-2-mini", "DIPTYCH_BATCHES_FOLDER": str(disk / "batches")}
    lines = [predict_line(number) for number in range(5)]
    with (
        running_service(exported.home, tmp_path / "service.log", OPEN, command, **settings) as service,
        openai_client(service, "-").with_options(max_retries=0) as client,
    ):
        large = client.files.create(file=("large", b"x" * 2_000_000), purpose="batch")
        with pytest.raises(openai.InternalServerError, match="No space left on device") as refused:
            create(client, lines * 10)
        assert (refused.value.status_code, refused.value.code) == (503, "not_ready")
        assert [file.id for file in client.files.list()] == [large.id]
        client.files.delete(large.id)
        assert ended(client, create(client, lines)).status == "completed"

"""The load test against the running service, by the command of `make loadtest`."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from loadtest.traffic import APIS
from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService, free_port

NUM_USERS = 16  # half a request per second each
SECONDS = 5
MIX = ROOT / "loadtest" / "traffic_mix.yaml"
TASKS = ("captioning", "dense_region_captioning", "ocr")
CHANGES = {
    "deadline_s": 20,  # a busy machine is late, and should not be refused for it
    # Few tasks, and all interfaces alike: the chance that one gets no request is one in a million.
    "tasks": [{"task": task, "weight": 1} for task in TASKS],
    "apis": dict.fromkeys(APIS, 1),
}


def load_command(url: str, grpc_address: str, options: str) -> list[str]:
    """Return the command of `make loadtest`, with this Python and these options."""
    options_of_test = f"--grpc {grpc_address} {options}"
    command = [
        "make",
        "--dry-run",
        "--silent",
        "loadtest",
        f"URL={url}",
        f"LOADTEST={options_of_test}",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    printed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    (line,) = [line for line in printed.replace("\\\n", "").splitlines() if "locust" in line]
    return [sys.executable, *line.split()[1:]]


def run_load(command: Sequence[str], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


@pytest.mark.parametrize("arrivals", ["open", "closed"])
def test_every_interface_is_answered(
    service: RunningService, tmp_path: Path, arrivals: str
) -> None:
    mix = tmp_path / "mix.yaml"
    mix.write_text(yaml.safe_dump(yaml.safe_load(MIX.read_text()) | CHANGES))
    load = f"--users {NUM_USERS} --spawn-rate {NUM_USERS} --run-time {SECONDS}s"
    files = f"--html {tmp_path / 'load.html'} --json-file {tmp_path / 'stats'}"
    options = f"--mix {mix} --arrivals {arrivals} {load} {files}"
    run = run_load(load_command(service.url, service.grpc_address, options))
    assert run.returncode == 0, run.stderr[-4000:]
    assert "dense_region_captioning" in (tmp_path / "load.html").read_text()
    rows = json.loads((tmp_path / "stats.json").read_text())
    assert {row["method"] for row in rows} == {*APIS, "first token"}
    for row in rows:
        assert row["num_failures"] == 0 < row["num_requests"]
        assert row["name"] in TASKS, "a status other than ok"


def test_missing_service_ends_the_run() -> None:
    run = run_load(load_command(f"http://127.0.0.1:{free_port()}", "127.0.0.1:1", "--run-time 20s"))
    assert run.returncode == 1
    assert "Connection refused" in run.stderr
    assert "Traceback" not in run.stderr


def test_invalid_mix_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("apis: {soap: 1}", encoding="utf-8")
    run = run_load(
        load_command("http://127.0.0.1:1", "127.0.0.1:1", f"--mix {tmp_path / 'mix.yaml'}")
    )
    assert run.returncode == 1
    assert run.stderr.rstrip().splitlines()[-1].startswith("  deadline_s: ")
    assert "Traceback" not in run.stderr

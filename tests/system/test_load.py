"""The load test against the running service, by the command of `make loadtest`."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loadtest.traffic import APIS
from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService

NUM_USERS = 16  # half a request per second each
SECONDS = 5
TASKS = ("captioning", "dense_region_captioning", "ocr")
CHANGES = {
    "deadline_s": 20,  # a busy machine is late, and should not be refused for it
    # Few tasks, and all interfaces alike: the chance that one gets no request is one in a million.
    "tasks": [{"task": task, "weight": 1} for task in TASKS],
    "apis": dict.fromkeys(APIS, 1),
}


def run_load(url: str, grpc_address: str, options: str) -> "subprocess.CompletedProcess[str]":
    """Run the command of `make loadtest`, with this Python and these options."""
    words = [f"URL={url}", f"LOADTEST=--grpc {grpc_address} {options}"]
    command = ["make", "--dry-run", "--silent", "loadtest", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    make = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    lines = make.stdout.replace("\\\n", "").splitlines()
    (line,) = [line for line in lines if "locust" in line]
    locust = [sys.executable, *line.split()[1:]]
    return subprocess.run(locust, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arrivals", ["open", pytest.param("closed", marks=pytest.mark.long)])
def test_every_interface_is_answered(
    service: RunningService, tmp_path: Path, arrivals: str
) -> None:
    mix = yaml.safe_load((ROOT / "loadtest" / "traffic_mix.yaml").read_text())
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(mix | CHANGES))
    options = f"--mix {tmp_path / 'mix.yaml'} --arrivals {arrivals} --run-time {SECONDS}s"
    options += f" --users {NUM_USERS} --spawn-rate {NUM_USERS}"
    options += f" --html {tmp_path / 'load.html'} --json-file {tmp_path / 'stats'}"
    run = run_load(service.url, service.grpc_address, options)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "dense_region_captioning" in (tmp_path / "load.html").read_text()
    rows = json.loads((tmp_path / "stats.json").read_text())
    assert {row["method"] for row in rows} == {*APIS, "first token"}
    for row in rows:
        assert row["num_failures"] == 0 < row["num_requests"]
        assert row["name"] in TASKS, "a status other than ok"


def test_growth_of_memory_above_the_bound_is_status_1(
    service: RunningService, tmp_path: Path
) -> None:
    options = f"--watch-pid {service.process.pid} --max-growth-mb -1000 --csv {tmp_path / 'load'}"
    options += f" --users 1 --run-time {SECONDS}s"
    run = run_load(service.url, service.grpc_address, options)
    assert run.returncode == 1
    assert "memory of florence-2-mini-runner" in run.stdout
    with (tmp_path / "load_memory.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for part, process_id in service.parts().items():
        assert float(rows[-1][f"{part} {process_id}"]) > 10

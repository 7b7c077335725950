"""The load test against the running service, by the command of `make loadtest`: a few seconds of
all users.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.load.traffic.traffic_mix import APIS
from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService, free_port

LEVEL = 8
SECONDS = 8
MIX = ROOT / "loadtest" / "load" / "traffic_mix.yaml"
TASKS = ("captioning", "dense_region_captioning", "ocr")
CHANGES = {
    "deadline_slos": 20,  # a busy machine is late, and should not be refused for it
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


@dataclass(frozen=True, slots=True)
class Written:
    """Locust's statistics, a row for each interface, task and status, and load.md."""

    stats: list[dict[str, Any]]
    text: str


@pytest.fixture(scope="module")
def written(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The reports of some seconds in the open loop."""
    folder = tmp_path_factory.mktemp("load")
    mix = tmp_path_factory.mktemp("mix") / "mix.yaml"
    mix.write_text(yaml.safe_dump(yaml.safe_load(MIX.read_text()) | CHANGES))
    files = f"--results {folder} --html {folder / 'load.html'} --json-file {folder / 'stats'}"
    users = 2 * LEVEL  # half a request per second each
    rate = f"--users {users} --spawn-rate {users} --run-time {SECONDS}s"
    options = f"--scenario manual {rate} --mix {mix} {files}"
    run = run_load(load_command(service.url, service.grpc_address, options))
    assert run.returncode == 0, run.stderr[-4000:]
    names = ["load.html", "load.md", "stats.json"]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert "dense_region_captioning" in (folder / "load.html").read_text()
    stats = json.loads((folder / "stats.json").read_text())
    return Written(stats, (folder / "load.md").read_text())


def test_every_interface_is_answered_and_nothing_fails(written: Written) -> None:
    assert {row["method"] for row in written.stats} == set(APIS)
    for row in written.stats:
        assert row["num_failures"] == 0 < row["num_requests"]
        assert ":" not in row["name"], "a status other than ok"


def test_as_much_is_offered_as_was_asked_for(written: Written) -> None:
    # Poisson: 64 requests with a standard error of 8, of which this allows five.
    num_due = sum(row["num_requests"] for row in written.stats)
    assert num_due == pytest.approx(LEVEL * SECONDS, abs=40)
    (row,) = re.findall(r"^\| \d.*$", written.text, re.MULTILINE)  # a short run is one window
    assert " / " in row, "no first token of a stream"


def test_a_service_that_is_not_there_ends_the_run_with_a_message(tmp_path: Path) -> None:
    run = run_load(
        load_command(
            f"http://127.0.0.1:{free_port()}", "127.0.0.1:1", f"--results {tmp_path / 'none'}"
        )
    )
    assert run.returncode == 1
    assert "Connection refused" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "none").exists()


def test_a_mix_that_cannot_be_used_ends_the_run_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("apis: {soap: 1}", encoding="utf-8")
    run = run_load(
        load_command("http://127.0.0.1:1", "127.0.0.1:1", f"--mix {tmp_path / 'mix.yaml'}")
    )
    assert run.returncode == 1
    assert run.stderr.rstrip().splitlines()[-1].startswith("  slos_ms: ")
    assert "Traceback" not in run.stderr

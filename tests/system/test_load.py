"""The load test against the running service, by the command of `make loadtest`: twenty seconds of
all users.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.load.traffic.traffic_mix import APIS
from tests.support.export_cli import EMBEDDED, ROOT
from tests.support.running_service import RunningService, free_port

LEVEL = 4
SECONDS = 20
MIX = ROOT / "loadtest" / "load" / "traffic_mix.yaml"
PATIENCE = {"deadline_slos": 20}  # a busy machine is late, and should not be refused for it


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
    (line,) = [line for line in printed.splitlines() if "locust" in line]
    return [sys.executable, *line.split()[1:]]


def run_load(command: Sequence[str], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


@pytest.fixture(scope="module")
def report(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of twenty seconds in the open loop."""
    folder = tmp_path_factory.mktemp("load")
    mix = tmp_path_factory.mktemp("mix") / "mix.yaml"
    mix.write_text(yaml.safe_dump(yaml.safe_load(MIX.read_text()) | PATIENCE))
    options = f"--scenario soak --level {LEVEL} --seconds {SECONDS} --mix {mix} --results {folder}"
    run = run_load(load_command(service.url, service.grpc_address, options))
    assert run.returncode == 0, run.stderr[-4000:]
    assert sorted(file.name for file in folder.iterdir()) == [
        "load.html",
        "load.json",
        "load.md",
        "load.png",
    ]
    report: dict[str, Any] = json.loads((folder / "load.json").read_text())
    return report


def test_every_interface_is_answered_and_nothing_fails(report: dict[str, Any]) -> None:
    assert set(report["by_api"]) == set(APIS)
    for api, numbers in report["by_api"].items():
        assert numbers["statuses"] == {"ok": numbers["num_due"]}, api
        assert (
            0
            < numbers["latency_ms"]["p50"]
            <= numbers["latency_ms"]["p95"]
            <= numbers["latency_ms"]["p99"]
        )


def test_as_much_is_offered_as_was_asked_for(report: dict[str, Any]) -> None:
    # Poisson: 80 requests with a standard error of 9, of which this allows four.
    assert report["total"]["num_due"] == pytest.approx(LEVEL * SECONDS, abs=36)
    assert [window["level"] for window in report["windows"]] == [LEVEL] * 2


def test_the_service_tells_of_its_queues_batches_and_first_tokens(report: dict[str, Any]) -> None:
    for window in report["windows"]:
        service = window["service"]
        assert service["first_token_p50_ms"] > 0
        assert {f"{model} decode" for model in EMBEDDED} <= service["queue_depth_mean"].keys()
        assert all(1 <= size <= 16 for size in service["batch_size_mean"].values())
    assert any(window["service"]["batch_size_mean"] for window in report["windows"])
    assert any(window["first_token_ms"] for window in report["windows"])


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

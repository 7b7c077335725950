"""Every way in which the endurance run asks, and slices of its runs."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.endurance import LIMITS, Client, Outcomes
from loadtest.senders import Checker, RestSender
from loadtest.traffic import Questions, read_mix
from tests.support.export_cli import ROOT, ModelStore
from tests.support.running_service import RunningService

COUNT = 2000
SLICE_S = 900


def test_every_way_is_answered(service: RunningService) -> None:
    """Each way gets the same texts about the same images."""
    mix = read_mix(ROOT / "loadtest" / "traffic_mix.yaml")
    mix = replace(mix, tasks=mix.tasks[:1], new_images=0, deadline_s=60)
    rng = random.Random(0)
    listing = RestSender(service.url, 1, "key").get("/v1/tasks")
    questions = Questions(mix, listing, rng)
    client = Client(service.url, service.grpc_address, "key", Checker(answers_repeat=True))
    outcomes = Outcomes()
    for way in [*client.ways] * 3:
        client.send(way, questions, rng, outcomes)
    assert not outcomes.faults
    assert outcomes.replies.total() == 3 * len(client.ways)


@pytest.mark.long
@pytest.mark.parametrize("kind", LIMITS)
def test_slice(kind: str, exported: ModelStore, tmp_path: Path) -> None:
    """Nothing is lost; so few samples show no growth."""
    words = [kind, "--count", str(COUNT), "--record", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "loadtest.endurance", *words],
        cwd=ROOT,
        env=os.environ | {"BENTOML_HOME": str(exported.home)},
        capture_output=True,
        text=True,
        timeout=SLICE_S,
    )
    assert "| growth per 10,000 |" in run.stdout, run.stderr
    record = json.loads((tmp_path / f"endurance-{kind}.json").read_text())
    assert record["faults"] == []
    assert record["samples"][-1]["done"] >= COUNT * 0.9
    assert (tmp_path / f"endurance-{kind}.png").stat().st_size > 1000

"""docs/guarantees.md: its commands print what it shows, and its numbers of images are true."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from diptych_client import Client
from diptych_client.evaluation.betting import num_images_needed
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.labelled_scenes import write_labelled_scenes
from tasks.scores import read_proofs
from tests.support.client_command import run
from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService

PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```console\n\$ diptych (.*?)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ROWS = re.findall(r"^\| (1|0 to 4) \| (\d+) % \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
LEVEL = 0.05 / 2  # the part of the threshold that accepts all


def test_the_commands_print_what_the_page_shows(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = {"labelled": range(400_000, 400_080), "photos": range(500_000, 500_020)}
    for name, indices in scenes.items():
        write_labelled_scenes(tmp_path / name, CONDITIONS["40px"], indices)
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 2
    for words, shown in COMMANDS:
        ran = run(service, *shlex.split(words))
        printed = ran.stdout if ran.returncode == 0 else ran.stderr
        assert printed.replace(f"{tmp_path}/", "") == shown
    proofs = read_proofs(tmp_path / "proofs.json")
    with Client(service.url) as client:
        (model,) = [model for model in client.models() if model.id == proofs[0].model]
    assert [each.min_precision for each in proofs] == [0.8, 0.9]
    for name in ("checkpoint", "precision", "calibration"):
        assert {getattr(each, name) for each in proofs} == {getattr(model, name)}


def test_the_numbers_of_images_are_those_of_the_bound() -> None:
    assert len(ROWS) == 6
    for labels, max_wrong, *shown in ROWS:
        counts = [1] if labels == "1" else [0, 1, 2, 3, 4]
        found = [num_needed(counts, int(max_wrong) / 100, part) for part in (0, 0.2, 0.5)]
        assert found == list(map(int, shown)), (labels, max_wrong)


def num_needed(counts: list[int], max_wrong: float, part: float) -> int | None:
    """Return the images that prove a share if a part of it is wrong, one label in an image."""
    labels = np.resize(np.array(counts, dtype=np.float64), 10_000)
    num_wrong = round(part * max_wrong * labels.sum())
    wrong = np.zeros_like(labels)
    wrong[np.flatnonzero(labels)[:num_wrong]] = 1
    values = (1 - max_wrong) * wrong - max_wrong * (labels - wrong)
    return num_images_needed(values, (1 - max_wrong) * max(counts), LEVEL)

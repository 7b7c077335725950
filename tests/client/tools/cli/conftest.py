"""The command `diptych` in this process, over a scripted service."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from diptych_client.tools.cli.app import main
from tests.support.evaluations import write_images
from tests.support.scripted_services import Script, serving_rest

MODEL: dict[str, object] = {
    "id": "first",
    "family": "florence2",
    "organization": "o",
    "category": "c",
    "modality": "m",
    "release_date": "2024-06-01",
    "context_window": 1,
    "parameters": 1,
    "license": "MIT",
    "tasks": ["object_detection"],
    "features": [],
    "resolution": 1,
    "precision": "int8",
    "checkpoint": "0" * 64,
    "calibrated_tasks": [],
    "calibration": "key",
}


Captured = pytest.CaptureFixture[str]


def listings(task: str, result: str, *models: str) -> dict[str, list[Any]]:
    """Return what a service lists: a task, and the models that offer it."""
    row = {"id": task, "description": "", "result": result, "parameters": {}, "models": models}
    return {"/v1/tasks": [row], "/v1/models": [MODEL | {"id": model} for model in models]}


class Diptych(Protocol):
    """Runs a command; returns its exit status."""

    def __call__(self, script: Script, *words: object) -> int: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of a.png, b.png and c.png."""
    write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def diptych(monkeypatch: pytest.MonkeyPatch) -> Iterator[Diptych]:
    def run(script: Script, *words: object) -> int:
        with serving_rest(script) as url:
            monkeypatch.setattr(sys, "argv", ["diptych", "--url", url, *map(str, words)])
            with pytest.raises(SystemExit) as ended:
                main()
        return int(ended.value.code or 0)

    yield run
    logger = logging.getLogger("diptych_client")
    logger.handlers = []
    logger.setLevel(logging.NOTSET)

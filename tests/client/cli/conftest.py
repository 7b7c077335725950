"""The command `diptych` in this process, over a scripted service."""

import logging
import sys
from collections.abc import Iterator
from typing import Protocol

import pytest

from diptych_client.cli.app import main
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


class Diptych(Protocol):
    """Runs a command; returns its exit status."""

    def __call__(self, script: Script, *words: object) -> int: ...


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

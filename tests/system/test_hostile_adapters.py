"""A folder with adapters of every hostile kind: each is refused in one line, at the start and while
the service runs.

The good one is the last in the order of names: nothing before it may keep it out.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from export.checks.reference import Reference
from tests.support.export_cli import MODELS, ModelStore
from tests.support.hostile_adapters import SPECIAL_FILES, safetensors_file
from tests.support.lora import write_adapter
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until
from wire.artifacts.adapter_folder import CONFIG_FILE, ENTRY_FILE, WEIGHTS_FILE

BASE = "florence-2-mini"
GOOD = "z-good"
LATER_SCANS_S = 3.0
HUGE_SHAPE = {"dtype": "F32", "shape": [0, 1 << 62, 9], "data_offsets": [0, 0]}


def configured(**config: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        before = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps(before | config))

    return change


def replaced(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def special(name: str, kind: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        SPECIAL_FILES[kind](folder / name)

    return change


HOSTILE: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "lookahead": (
        configured(alpha_pattern={r"(?=(\w+\.?)+x)x": 1}),
        "alpha_pattern has the pattern",
    ),
    "nested-json": (
        replaced(CONFIG_FILE, "[" * 100_000),
        "cannot be read as JSON: RecursionError: maximum recursion depth",
    ),
    "large-json": (
        replaced(CONFIG_FILE, " " * 100_000_000),
        "has 100000000 bytes; at most 1000000",
    ),
    "nested-yaml": (replaced(ENTRY_FILE, "- " * 5_000), "more than 5 levels are not allowed"),
    "no-date": (replaced(ENTRY_FILE, "license: 2001-13-45"), "cannot be read as YAML"),
    "fifo-config": (special(CONFIG_FILE, "FIFO"), "must be a regular file"),
    "fifo-weights": (special(WEIGHTS_FILE, "FIFO"), "must be a regular file"),
    "device-weights": (special(WEIGHTS_FILE, "device"), "must be a regular file"),
    "link": (special(WEIGHTS_FILE, "link to itself"), "Too many levels of symbolic links"),
    "rank": (
        configured(r=200_000),
        "r is 200000, which is not supported; it must be a whole number of 1 to 512",
    ),
    "terabyte": (
        lambda folder: os.truncate(folder / WEIGHTS_FILE, 1 << 40),
        "at most 1000000000 are allowed",
    ),
    "header": (
        replaced(WEIGHTS_FILE, (1 << 62).to_bytes(8, "little") + b"{}"),
        "has a header of 4611686018427387904",
    ),
    "shape": (
        replaced(WEIGHTS_FILE, safetensors_file({"a": HUGE_SHAPE})),
        "cannot be read as safetensors",
    ),
}


def refusals(service: RunningService, name: str) -> list[str]:
    lines = service.log.read_text().splitlines()
    return [line for line in lines if f"the adapter {name} " in line and "refused" in line]


def answers(service: RunningService, model: str) -> bool:
    with service.client() as http:
        fields = {"task": "captioning", "model": model}
        files = {"image": scene_png(3)}
        return http.post(
            "/v1/predict", data=fields, files=files, headers={"X-Deadline-Ms": "5000"}
        ).is_success


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / GOOD
    written = write_adapter(Reference.load(MODELS / BASE).model, folder, 0)
    (written / ENTRY_FILE).write_text(f"adapter_of: {BASE}\n")
    return written


def test_hostile_adapters_are_refused_in_one_line_each_and_keep_no_other_out(
    exported: ModelStore, good: Path, tmp_path: Path
) -> None:
    watched = tmp_path / "adapters"
    for name, (spoil, _) in HOSTILE.items():
        spoil(shutil.copytree(good, watched / name))
    shutil.copytree(good, watched / GOOD)
    settings = {"DIPTYCH_MODELS": BASE, "DIPTYCH_ADAPTERS": str(watched)}
    with forked_service(exported.home, tmp_path / "service.log", **settings) as service:
        wait_until(lambda: answers(service, GOOD))
        time.sleep(LATER_SCANS_S)
        for name, (_, reason) in HOSTILE.items():
            (line,) = refusals(service, name)
            assert reason in line
        shutil.copytree(good, watched / "z-later")
        wait_until(lambda: answers(service, "z-later"))
        os.kill(service.parts()[f"{BASE}-runner"], signal.SIGKILL)
        wait_until(lambda: answers(service, GOOD) and answers(service, BASE))
        assert "Traceback" not in service.log.read_text()


def test_patterns_that_backtrack_for_ever_stop_neither_the_base_nor_the_start(
    exported: ModelStore, good: Path, tmp_path: Path
) -> None:
    watched = tmp_path / "adapters"
    watched.mkdir()
    settings = {
        "DIPTYCH_MODELS": BASE,
        "DIPTYCH_ADAPTERS": str(watched),
        "DIPTYCH_STUCK_AFTER_S": "5",
    }
    with forked_service(exported.home, tmp_path / "service.log", **settings) as service:
        for key in ("alpha", "rank"):
            spoil = configured(**{f"{key}_pattern": {r"(\w+\.?)+x": 4}})
            spoil(shutil.copytree(good, watched / key))
        wait_until(lambda: answers(service, "alpha") and answers(service, "rank"))
        assert answers(service, BASE)
        runner = service.parts()[f"{BASE}-runner"]
        os.kill(runner, signal.SIGKILL)
        wait_until(lambda: all(answers(service, model) for model in ("alpha", "rank", BASE)))
        assert service.log.read_text().count("and is restarted") == 1

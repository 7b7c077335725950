"""LoRA adapters that come and go while the service runs: a watched folder, the real service, real
adapters of peft; among them hostile ones, each of which is refused in one line.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from export.checks.reference import Reference
from tests.support.export_cli import MODELS, ModelStore
from tests.support.lora import write_adapter
from tests.support.microsoft_form import update_json
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until
from wire.artifacts.adapter_folder import CONFIG_FILE, ENTRY_FILE, WEIGHTS_FILE

BASE = "florence-2-mini"
RUNNER = f"{BASE}-runner"
NAME = "shapes"
LATER_SCANS_S = 3.0
ENTRY = f"adapter_of: {BASE}\nlicense: MIT\ntasks: {{ocr: null}}\n"


def with_config(**config: object) -> Callable[[Path], object]:
    return lambda folder: update_json(folder / CONFIG_FILE, **config)


def with_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def with_fifo(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def truncated(num_bytes: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / WEIGHTS_FILE, num_bytes)


# The change of a good adapter, and the reason of the refusal.
HOSTILE: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "dora": (with_config(use_dora=True), "use_dora is True, which is not supported"),
    "another-base": (
        with_file(ENTRY_FILE, ENTRY.replace(BASE, "florence-2-huge").encode()),
        f"its base 'florence-2-huge' is not served; the served models are {BASE}",
    ),
    "lookahead": (
        with_config(alpha_pattern={r"(?=(\w+\.?)+x)x": 1}),
        "is not a pattern of RE2",
    ),
    "nested-json": (with_file(CONFIG_FILE, b"[" * 100_000), "RecursionError"),
    "fifo-config": (with_fifo(CONFIG_FILE), "must be a regular file"),
    "fifo-weights": (with_fifo(WEIGHTS_FILE), "must be a regular file"),
    "rank": (with_config(r=200_000), "a rank is 200000; at most 512 is supported"),
    "terabyte": (truncated(1 << 40), "at most 1000000000 are allowed"),
    "header": (
        with_file(WEIGHTS_FILE, (1 << 62).to_bytes(8, "little") + b"{}"),
        "has a header of more than",
    ),
}
# Patterns that backtrack for ever in Python's engine.
SLOW: Mapping[str, Callable[[Path], object]] = {
    f"slow-{key}": with_config(**{f"{key}_pattern": {r"(\w+\.?)+x": 4}})
    for key in ("alpha", "rank")
}


@dataclass(frozen=True)
class HotService:
    """A running service and the folder of adapters that it watches."""

    running: RunningService
    folder: Path
    adapters: tuple[Path, Path]  # outside of the folder

    def put(
        self, adapter: Path, name: str = NAME, change: Callable[[Path], object] = lambda _: None
    ) -> None:
        """Copy an adapter beside the folder, then rename it into it."""
        new = shutil.copytree(adapter, self.folder / f".{name}.new")
        (new / ENTRY_FILE).write_text(ENTRY)
        change(new)
        if (self.folder / name).exists():
            (self.folder / name).rename(self.folder / f".{name}.old")
            shutil.rmtree(self.folder / f".{name}.old")
        new.rename(self.folder / name)

    def ask(self, model: str, **fields: object) -> httpx.Response:
        form: Any = {"task": "captioning", "detail": "paragraph", "model": model} | fields
        return self.running.predict(scene_png(3), **form)

    def answers(self, *models: str) -> bool:
        return all(self.ask(model).is_success for model in models)

    def text(self, model: str) -> str:
        answer = self.ask(model)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["raw_text"])

    def get(self, path: str) -> Any:
        with self.running.client() as http:
            return http.get(path).raise_for_status().json()

    def models(self) -> dict[str, Any]:
        return {model["id"]: model for model in self.get("/v1/models")["data"]}

    def log_lines(self, *words: str) -> list[str]:
        lines = self.running.log.read_text().splitlines()
        return [line for line in lines if all(word in line for word in words)]

    def refusals(self, name: str) -> list[str]:
        return self.log_lines(f"the adapter {name} ", "refused")


@pytest.fixture(scope="module")
def hot(exported: ModelStore, folder: Path) -> Iterator[HotService]:
    watched = folder / "adapters"
    watched.mkdir()
    model = Reference.load(MODELS / BASE).model
    adapters = (write_adapter(model, folder / "0", 0), write_adapter(model, folder / "1", 1))
    settings = {"DIPTYCH_MODELS": BASE, "DIPTYCH_ADAPTERS": str(watched)}
    settings |= {"DIPTYCH_STUCK_AFTER_S": "5", "DIPTYCH_REQUEST_TIMEOUT_S": "8"}
    with forked_service(exported.home, folder / "service.log", **settings) as running:
        yield HotService(running, watched, adapters)


@pytest.fixture(autouse=True)
def _empty(hot: HotService) -> Iterator[None]:
    yield
    for path in hot.folder.iterdir():
        shutil.rmtree(path)
    until(lambda: hot.models().keys() == {BASE})


def until(condition: Callable[[], object]) -> None:
    wait_until(condition, pause_s=0.05)


def test_adapter_is_served_replaced_and_removed(hot: HotService) -> None:
    base = hot.text(BASE)
    processes = hot.running.parts()
    assert hot.ask(NAME).status_code == 404
    hot.put(hot.adapters[0])
    until(lambda: NAME in hot.models())
    first = hot.text(NAME)
    assert hot.ask(NAME).json()["vision_cache"] == "hit"
    assert metric(hot.running, "diptych_requests_total", api="rest", model=NAME) > 0
    hot.put(hot.adapters[1])
    until(lambda: hot.text(NAME) != first)
    second = hot.text(NAME)
    hot.put(hot.adapters[0])
    until(lambda: hot.text(NAME) != second)
    assert len({base, first, second}) == 3
    assert (hot.text(NAME), hot.text(BASE)) == (first, base)
    shutil.rmtree(hot.folder / NAME)
    until(lambda: NAME not in hot.models())
    refused = hot.ask(NAME)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_model")
    assert hot.text(BASE) == base
    assert hot.running.parts() == processes


def test_bad_adapters_are_refused_in_one_line_each(hot: HotService) -> None:
    """The good one is the last in the order of names: nothing before it may keep it out."""
    good = "z-good"
    for name, (change, _) in HOSTILE.items():
        hot.put(hot.adapters[1], name, change)
    for name, change in SLOW.items():
        hot.put(hot.adapters[1], name, change)
    hot.put(hot.adapters[0], good)
    served = (BASE, good, *SLOW)
    until(lambda: hot.answers(*served))
    answer = hot.text(good)
    until(lambda: all(map(hot.refusals, HOSTILE)))
    time.sleep(LATER_SCANS_S)
    for name, (_, reason) in HOSTILE.items():
        (line,) = hot.refusals(name)
        assert reason in line
    assert hot.models().keys() == set(served)
    hot.put(hot.adapters[1], "dora")
    until(lambda: hot.answers("dora"))
    hot.running.send_signal(RUNNER, signal.SIGKILL)
    until(lambda: hot.answers(*served))
    assert hot.text(good) == answer
    assert len(hot.log_lines("and is restarted")) == 1
    assert not hot.log_lines("Traceback")


def test_removed_adapter_completes_its_stream(hot: HotService) -> None:
    """The runner is stopped in the middle of the answer, so that the removal is certain to come
    before its end.
    """
    hot.put(hot.adapters[0], change=with_config(lora_dropout=0.5))  # another build
    until(lambda: NAME in hot.models())
    build = hot.log_lines(f"the adapter {NAME} of {BASE} is loaded")[-1].rpartition(" ")[2]
    form: dict[str, Any] = {"task": "object_detection", "model": NAME}
    image = scene_png(10)
    expected = hot.running.predict(image, **form).json()
    assert expected["usage"]["generated_tokens"] > 60
    with hot.running.chunks(image, **form) as chunks:
        first = next(chunks)
        hot.running.send_signal(RUNNER, signal.SIGSTOP)
        try:
            shutil.rmtree(hot.folder / NAME)
            until(lambda: NAME not in hot.models())  # within the time of the request
        finally:
            hot.running.send_signal(RUNNER, signal.SIGCONT)
        rest = "".join(chunks)
    kind, answer = parse_events(first + rest)[-1]
    assert "event: result" not in first
    assert (kind, answer["raw_text"]) == ("result", expected["raw_text"])
    assert not hot.log_lines("is freed", build)
    until(lambda: hot.log_lines("is freed", build))
    assert hot.ask(NAME).status_code == 404

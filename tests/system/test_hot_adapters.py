"""LoRA adapters that come and go while the service runs: a watched folder, the real service, real
adapters of peft.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from export.checks.reference import Reference
from tests.support.export_cli import MODELS, ModelStore
from tests.support.lora import write_adapter
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.waiting import wait_until

BASE = "florence-2-mini"
NAME = "shapes"
REQUEST_TIMEOUT_S = 8
ENTRY = f"adapter_of: {BASE}\nlicense: MIT\ntasks: {{ocr: null}}\n"


@dataclass(frozen=True)
class HotService:
    """A running service and the folder of adapters that it watches."""

    running: RunningService
    folder: Path
    written: tuple[Path, Path]  # two adapters outside of the folder

    def put(self, adapter: Path, name: str = NAME, entry: str = ENTRY) -> None:
        """Copy an adapter beside the folder, then rename it into it."""
        new = shutil.copytree(adapter, self.folder / f".{name}.new")
        (new / "diptych.yaml").write_text(entry)
        if (self.folder / name).exists():
            (self.folder / name).rename(self.folder / f".{name}.old")
            shutil.rmtree(self.folder / f".{name}.old")
        new.rename(self.folder / name)

    def remove(self, name: str = NAME) -> None:
        shutil.rmtree(self.folder / name)

    def ask(self, model: str, **fields: str) -> httpx.Response:
        given = {"task": "captioning", "detail": "paragraph", "model": model} | fields
        with self.running.client() as http:
            return http.post("/v1/predict", data=given, files={"image": scene_png(3)})

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
        return [line for line in lines if all(map(line.__contains__, words))]


@pytest.fixture(scope="module")
def hot(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HotService]:
    with hot_service(exported, tmp_path_factory.mktemp("hot")) as service:
        yield service


@pytest.fixture(autouse=True)
def _empty(hot: HotService) -> Iterator[None]:
    yield
    for path in hot.folder.iterdir():
        shutil.rmtree(path)
    until(lambda: hot.models().keys() == {BASE})


@contextmanager
def hot_service(exported: ModelStore, folder: Path, **settings: str) -> Iterator[HotService]:
    watched = folder / "adapters"
    watched.mkdir()
    written = [
        write_adapter(Reference.load(MODELS / BASE).model, folder / str(seed), seed)
        for seed in range(2)
    ]
    given = {"DIPTYCH_MODELS": BASE, "DIPTYCH_ADAPTERS": str(watched)} | settings
    given |= {"DIPTYCH_REQUEST_TIMEOUT_S": str(REQUEST_TIMEOUT_S)}
    with forked_service(exported.home, folder / "service.log", **given) as running:
        yield HotService(running, watched, (written[0], written[1]))


def until(condition: Callable[[], object]) -> None:
    wait_until(condition, pause_s=0.05)


def test_an_adapter_is_served_replaced_and_removed_without_a_restart(hot: HotService) -> None:
    base = hot.text(BASE)
    processes = hot.running.parts()
    assert hot.ask(NAME).status_code == 404
    hot.put(hot.written[0])
    until(lambda: NAME in hot.models())
    first = hot.text(NAME)
    hot.put(hot.written[1])
    until(lambda: hot.text(NAME) != first)
    second = hot.text(NAME)
    hot.put(hot.written[0])
    until(lambda: hot.text(NAME) != second)
    assert len({base, first, second}) == 3
    assert (hot.text(NAME), hot.text(BASE)) == (first, base)
    hot.remove()
    until(lambda: NAME not in hot.models())
    refused = hot.ask(NAME)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_model")
    assert hot.text(BASE) == base
    assert hot.running.parts() == processes


@pytest.mark.long
def test_a_single_process_follows_the_folder_too(exported: ModelStore, tmp_path: Path) -> None:
    with hot_service(exported, tmp_path, DIPTYCH_PROCESSES="one") as one:
        test_an_adapter_is_served_replaced_and_removed_without_a_restart(one)


def test_an_adapter_is_in_every_listing_with_the_keys_of_its_entry(hot: HotService) -> None:
    hot.put(hot.written[0])
    until(lambda: NAME in hot.models())
    listed = hot.models()[NAME]
    base = hot.models()[BASE]
    own = {"id": NAME, "adapter_of": BASE, "license": "MIT"}
    shared = ("family", "resolution", "context_window", "parameters", "organization", "precision")
    assert {key: listed[key] for key in own} == own
    assert {key: listed[key] for key in shared} == {key: base[key] for key in shared}
    tasks = {task["id"]: task["models"] for task in hot.get("/v1/tasks")["data"]}
    assert (tasks["captioning"], tasks["ocr"]) == ([BASE, NAME], [BASE])
    hot.text(NAME)
    with hot.running.client() as http:
        metrics = http.get("/metrics").text
        compared = http.post(
            "/v1/compare", data={"task": "captioning"}, files={"image": scene_png(3)}
        ).json()
    assert f'diptych_requests_total{{api="rest",model="{NAME}"' in metrics
    assert any(
        line.endswith(" 1.0")
        for line in metrics.splitlines()
        if f'model="{NAME}"' in line and "_info" in line
    )
    assert [answer["model"] for answer in compared["answers"]] == [BASE, NAME]
    assert hot.ask(NAME).json()["vision_cache"] == "hit"


def test_bad_adapters_are_refused_once_with_the_reason_and_others_stay(hot: HotService) -> None:
    hot.put(hot.written[0])
    until(lambda: NAME in hot.models())
    answer = hot.text(NAME)
    dora = shutil.copytree(hot.written[1], hot.folder.parent / "dora")
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    hot.put(dora, "dora")
    cut = shutil.copytree(hot.written[1], hot.folder.parent / "cut")
    os.truncate(cut / "adapter_model.safetensors", 10_000)
    hot.put(cut, "cut")
    hot.put(hot.written[1], "unknown-task", ENTRY.replace("ocr", "reading"))
    hot.put(hot.written[1], "another-base", ENTRY.replace(BASE, "florence-2-huge"))
    hot.put(hot.written[1], "florence-2-base")
    reasons = {
        "dora": "use_dora is True, which is not supported",
        "cut": "cannot be read as safetensors",
        "unknown-task": "the unknown task 'reading'",
        "another-base": f"its base 'florence-2-huge' is not served; the served models are {BASE}",
        "florence-2-base": "the catalog has a model 'florence-2-base'",
    }
    for name, reason in reasons.items():
        until(lambda name=name: hot.log_lines(f"the adapter {name} ", "refused"))  # type: ignore[misc]
        assert reason in hot.log_lines(f"the adapter {name} ", "refused")[0]
    time.sleep(2.5)  # two more scans
    assert all(len(hot.log_lines(f"the adapter {name} ", "refused")) == 1 for name in reasons)
    assert hot.models().keys() == {BASE, NAME}
    assert hot.text(NAME) == answer
    hot.put(hot.written[1], "dora")
    until(lambda: "dora" in hot.models())


def test_a_stream_of_a_removed_adapter_ends_with_its_answer_and_the_weights_are_freed(
    hot: HotService,
) -> None:
    """The runner is stopped in the middle of the answer, so that the removal is certain to come
    before its end.
    """
    own = write_adapter(
        Reference.load(MODELS / BASE).model, hot.folder.parent / "streamed", 0, lora_dropout=0.5
    )
    hot.put(own)
    until(lambda: NAME in hot.models())
    build = hot.log_lines(f"the adapter {NAME} of {BASE} is loaded")[-1].rpartition(" ")[2]
    given = {"task": "object_detection", "model": NAME}
    image = {"image": scene_png(10)}
    with hot.running.client() as http:
        expected = http.post("/v1/predict", data=given, files=image).json()
    assert expected["usage"]["generated_tokens"] > 60
    runner = hot.running.parts()[f"{BASE}-runner"]
    with (
        hot.running.client() as http,
        http.stream(
            "POST", "/v1/predict", data=given | {"stream": "true"}, files=image
        ) as response,
    ):
        chunks = response.iter_text()
        first = next(chunks)
        os.kill(runner, signal.SIGSTOP)
        try:
            hot.remove()
            until(lambda: NAME not in hot.models())  # within the time of the request
        finally:
            os.kill(runner, signal.SIGCONT)
        rest = "".join(chunks)
    kind, answer = parse_events(first + rest)[-1]
    assert "event: result" not in first
    assert (kind, answer["raw_text"]) == ("result", expected["raw_text"])
    assert not hot.log_lines("is freed", build)
    until(lambda: hot.log_lines("is freed", build))
    assert hot.ask(NAME).status_code == 404


def test_the_same_adapters_come_back_after_a_restart_of_the_runner(hot: HotService) -> None:
    hot.put(hot.written[0])
    until(lambda: NAME in hot.models())
    answer = hot.text(NAME)
    runner = hot.running.parts()[f"{BASE}-runner"]
    os.kill(runner, signal.SIGKILL)
    until(lambda: hot.running.parts().get(f"{BASE}-runner", runner) != runner)
    until(lambda: hot.ask(NAME).status_code == 200)
    assert hot.text(NAME) == answer

"""LoRA adapters of peft served end to end: exported ones, and those that come and go in a watched
folder while the service runs; hostile ones are refused in one line each.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from export.checks.reference import Reference
from tests.support.export_cli import MODELS, ModelStore
from tests.support.lora import VISION_OPTIONS, write_adapter, write_catalog
from tests.support.microsoft_form import update_json
from tests.support.running_service import RunningService, forked_service, parse_events, post_form
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until
from tests.system.service_metrics import metric
from tests.system.test_starts import failure_of_start
from wire.artifacts.adapter_folder import CONFIG_FILE, ENTRY_FILE, WEIGHTS_FILE

BASE = "florence-2-mini"
RUNNER = f"{BASE}-runner"
VISION = "shapes-vision"
EXPORTED = ("shapes-a", "shapes-b", VISION)  # the last changes the vision tower, too
SERVED = (BASE, *EXPORTED)
HOT = "shapes"
QUESTION: dict[str, Any] = {"task": "captioning", "detail": "paragraph"}
LATER_SCANS_S = 3.0
ENTRY = f"adapter_of: {BASE}\nlicense: MIT\ntasks: {{ocr: null}}\n"


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    store = ModelStore(folder / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    (folder / "watched").mkdir()
    rows: dict[str, dict[str, Any]] = {}
    for seed, adapter in enumerate(EXPORTED):
        model = Reference.load(MODELS / BASE).model
        options = VISION_OPTIONS[BASE] if adapter == VISION else {}
        source = write_adapter(model, folder / adapter, seed, **options)
        rows[adapter] = {"adapter_of": BASE, "source": str(source), "tasks": {"ocr": None}}
    catalog = str(write_catalog(folder / "catalog.yaml", rows))
    run = store.forked("-m", "export", *EXPORTED, DIPTYCH_CATALOG=catalog)
    assert run.returncode == 0, run.stderr
    settings = {"DIPTYCH_CATALOG": catalog, "DIPTYCH_MODELS": ",".join(SERVED)}
    settings |= {"DIPTYCH_STUCK_AFTER_S": "5", "DIPTYCH_REQUEST_TIMEOUT_S": "8"}
    settings |= {"DIPTYCH_ADAPTERS": str(folder / "watched")}
    with forked_service(store.home, folder / "service.log", **settings) as running:
        yield running


@pytest.fixture
def put(folder: Path) -> Callable[..., None]:
    """A function that copies a source beside the watched folder, then renames it into it."""
    watched = folder / "watched"

    def put(
        source: str, name: str = HOT, change: Callable[[Path], object] = lambda _: None
    ) -> None:
        new = shutil.copytree(folder / source, watched / f".{name}.new")
        (new / ENTRY_FILE).write_text(ENTRY)
        change(new)
        if (watched / name).exists():
            (watched / name).rename(watched / f".{name}.old")
            shutil.rmtree(watched / f".{name}.old")
        new.rename(watched / name)

    return put


def ask(service: RunningService, model: str) -> httpx.Response:
    return service.predict(scene_png(3), **QUESTION, model=model)


def text(service: RunningService, model: str) -> str:
    return str(ask(service, model).raise_for_status().json()["raw_text"])


def models(service: RunningService) -> set[str]:
    with service.client() as http:
        listed = http.get("/v1/models").raise_for_status().json()["data"]
    return {model["id"] for model in listed}


def log_lines(service: RunningService, *words: str) -> list[str]:
    lines = service.log.read_text().splitlines()
    for word in words:
        lines = [line for line in lines if word in line]
    return lines


def until(condition: Callable[[], object]) -> None:
    wait_until(condition, pause_s=0.05)


def test_adapters_share_the_features_of_their_base(service: RunningService) -> None:
    """But for the one that changes the vision tower."""
    answers = [ask(service, model).raise_for_status().json() for model in SERVED * 2]
    assert [answer["model"] for answer in answers] == [*SERVED] * 2
    outcomes = [answer["vision_cache"] for answer in answers]
    assert outcomes == ["miss", "hit", "hit", "miss", *["hit"] * 4]
    texts = [answer["raw_text"] for answer in answers]
    assert len(set(texts)) > 2
    with service.client() as client:
        compared = post_form(client, "/v1/compare", scene_png(3), QUESTION).json()["answers"]
    assert [answer["raw_text"] for answer in compared] * 2 == texts


def test_adapter_is_served_replaced_and_removed(
    service: RunningService, put: Callable[..., None], folder: Path
) -> None:
    base = text(service, BASE)
    processes = service.parts()
    assert ask(service, HOT).status_code == 404
    put("shapes-a")
    until(lambda: HOT in models(service))
    first = text(service, HOT)
    assert first == text(service, "shapes-a") != base
    assert ask(service, HOT).json()["vision_cache"] == "hit"
    assert metric(service, "diptych_requests_total", api="rest", model=HOT) > 0
    put("shapes-b")
    until(lambda: text(service, HOT) != first)
    assert text(service, HOT) == text(service, "shapes-b") != base
    put("shapes-a")
    until(lambda: text(service, HOT) == first)
    shutil.rmtree(folder / "watched" / HOT)
    until(lambda: HOT not in models(service))
    refused = ask(service, HOT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_model")
    assert text(service, BASE) == base
    assert service.parts() == processes


def with_config(**config: object) -> Callable[[Path], object]:
    return lambda folder: update_json(folder / CONFIG_FILE, **config)


def of_another_base(folder: Path) -> None:
    (folder / ENTRY_FILE).write_text(ENTRY.replace(BASE, "florence-2-huge"))


def with_fifo(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)


# The change of a good adapter, and the reason of the refusal by the gateway or the runner.
HOSTILE: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "another-base": (of_another_base, "its base 'florence-2-huge' is not served"),
    "dora": (with_config(use_dora=True), "use_dora is True, which is not supported"),
    "fifo": (with_fifo, "must be a regular file"),
    "nested": (lambda folder: (folder / CONFIG_FILE).write_text("[" * 100_000), "RecursionError"),
    "terabyte": (lambda folder: os.truncate(folder / WEIGHTS_FILE, 1 << 40), "are allowed"),
}
# A pattern that backtracks for ever in Python's engine.
SLOW = with_config(alpha_pattern={r"(\w+\.?)+x": 4})


def test_bad_adapters_are_refused_in_one_line_each(
    service: RunningService, put: Callable[..., None]
) -> None:
    """The good one is the last in the order of names: nothing before it may keep it out."""
    good = ("slow", "z-good")
    for name, (change, _) in HOSTILE.items():
        put("shapes-b", name, change)
    put("shapes-b", "slow", SLOW)
    put("shapes-a", "z-good")

    def are_served(*names: str) -> bool:
        return all(ask(service, name).is_success for name in (*SERVED, *names))

    def refusals(name: str) -> list[str]:
        return log_lines(service, f"the adapter {name} ", "refused")

    until(lambda: are_served(*good))
    until(lambda: all(map(refusals, HOSTILE)))
    time.sleep(LATER_SCANS_S)
    for name, (_, reason) in HOSTILE.items():
        (line,) = refusals(name)
        assert reason in line
    assert models(service) == {*SERVED, *good}
    put("shapes-b", "dora")
    until(lambda: are_served("dora"))
    service.send_signal(RUNNER, signal.SIGKILL)
    until(lambda: are_served(*good))
    assert text(service, "z-good") == text(service, "shapes-a")
    assert len(log_lines(service, "and is restarted")) == 1
    assert not log_lines(service, "Traceback")


def test_removed_adapter_completes_its_stream(
    service: RunningService, put: Callable[..., None], folder: Path
) -> None:
    """The runner is stopped in the middle of the answer, so that the removal is certain to come
    before its end.
    """
    put("shapes-a", HOT, with_config(lora_dropout=0.5))  # another build
    until(lambda: HOT in models(service))
    build = log_lines(service, f"the adapter {HOT} of {BASE} is loaded")[-1].rpartition(" ")[2]
    form: dict[str, Any] = {"task": "object_detection", "model": HOT}
    image = scene_png(10)
    expected = service.predict(image, **form).json()
    assert expected["usage"]["generated_tokens"] > 60
    with service.chunks(image, **form) as chunks:
        first = next(chunks)
        service.send_signal(RUNNER, signal.SIGSTOP)
        try:
            shutil.rmtree(folder / "watched" / HOT)
            until(lambda: HOT not in models(service))  # within the time of the request
        finally:
            service.send_signal(RUNNER, signal.SIGCONT)
        rest = "".join(chunks)
    kind, answer = parse_events(first + rest)[-1]
    assert "event: result" not in first
    assert (kind, answer["raw_text"]) == ("result", expected["raw_text"])
    assert not log_lines(service, "is freed", build)
    until(lambda: log_lines(service, "is freed", build))
    assert ask(service, HOT).status_code == 404


@pytest.mark.usefixtures("service")
def test_adapter_of_another_base_stops_the_start(folder: Path) -> None:
    """The last of this file: it changes the store."""
    store = ModelStore(folder / "bentoml")
    manifest = store.newest("shapes-a") / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"base_build_key": "0" * 64}))
    settings = {"DIPTYCH_CATALOG": str(folder / "catalog.yaml"), "DIPTYCH_MODELS": ",".join(SERVED)}
    failure = failure_of_start(store, **settings)
    assert "export the adapter again: python -m export shapes-a" in failure

"""A runner that stands still: readiness goes false, requests end by their deadline, and all is well
when it goes on.

If it does not go on, it is restarted, and its stream continues.
"""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.support.endless_models import endless_models
from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.stopped_thread import busiest_thread, stop_thread_until_its_process_ends
from tests.support.waiting import wait_until
from wire.artifacts.manifest import MANIFEST_FILE

DEADLINE = {"X-Deadline-Ms": "1500"}


@pytest.fixture(scope="module")
def service(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    log = tmp_path_factory.mktemp("stuck") / "service.log"
    with forked_service(exported.home, log, DIPTYCH_VISION_CACHE_MB="0") as running:
        yield running


def ask(service: RunningService, model: str, headers: dict[str, str]) -> httpx.Response:
    form = {"task": "ocr", "model": model}
    files = {"image": scene_png()}
    return httpx.post(
        f"{service.url}/v1/predict", data=form, files=files, headers=headers, timeout=60
    )


def test_a_runner_that_stands_still_is_noticed_and_its_requests_end(
    service: RunningService,
) -> None:
    expected = ask(service, "florence-2-mini", {}).json()["raw_text"]
    stopped = service.parts()["florence-2-mini-runner"]
    os.kill(stopped, signal.SIGSTOP)
    try:
        wait_until(lambda: not service.is_ready())
        late = ask(service, "florence-2-mini", DEADLINE)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert ask(service, "paligemma-mini", {}).status_code == 200
    finally:
        os.kill(stopped, signal.SIGCONT)
    service.wait_until_ready()
    assert ask(service, "florence-2-mini", {}).json()["raw_text"] == expected
    assert service.parts()["florence-2-mini-runner"] == stopped


@contextmanager
def kept_busy(service: RunningService) -> Iterator[None]:
    """Give the decoder work until the caller is done, however late the caller's own stream is
    read.
    """
    done = threading.Event()
    form = {"task": "captioning", "max_new_tokens": "200"}

    def work(client: httpx.Client) -> None:
        while not done.is_set():
            with suppress(httpx.TransportError):  # a single process breaks its connections
                client.post("/v1/predict", data=form, files={"image": scene_png()})

    with service.client() as client:
        thread = threading.Thread(target=work, args=(client,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def test_a_runner_whose_decoder_is_stuck_is_restarted_and_its_stream_continues(
    exported: ModelStore, tmp_path: Path
) -> None:
    """One thread is stopped, not the process: the others, and a probe, go on."""
    model = "paligemma-mini"
    form = {"task": "captioning", "max_new_tokens": "200", "stream": "true"}
    store = endless_models(exported, tmp_path / "bentoml")
    log = tmp_path / "service.log"
    name = f"{model}-runner"
    settings = {"DIPTYCH_STUCK_AFTER_S": "2", "DIPTYCH_MODELS": model}
    with forked_service(store.home, log, **settings) as service, service.client() as client:
        stuck = service.parts()[name]
        with kept_busy(service):
            decoder_thread = busiest_thread(stuck)
            with client.stream(
                "POST", "/v1/predict", data=form, files={"image": scene_png()}
            ) as response:
                chunks = response.iter_text()
                first = next(chunks)
                stop_thread_until_its_process_ends(decoder_thread)
                events = parse_events(first + "".join(chunks))
        service.wait_until_ready()
    assert events[-1][1]["usage"]["generated_tokens"] == 200
    assert "Timeout (0:00:02)!" in log.read_text()  # above the stacks
    assert f"{name} (process {stuck}) ended with status 1 and is restarted" in log.read_text()


@pytest.mark.long
def test_a_single_process_whose_decoder_is_stuck_breaks_its_connections_and_comes_back(
    exported: ModelStore, tmp_path: Path
) -> None:
    store = endless_models(exported, tmp_path / "bentoml")
    log = tmp_path / "service.log"
    settings = {"DIPTYCH_STUCK_AFTER_S": "2", "DIPTYCH_MODELS": "paligemma-mini"}
    with forked_service(store.home, log, DIPTYCH_PROCESSES="one", **settings) as service:
        stuck = service.parts()["diptych"]
        with kept_busy(service), pytest.raises(httpx.RemoteProtocolError):
            stream_from_a_stuck_decoder(service, busiest_thread(stuck))
        service.wait_until_ready()
        assert service.parts()["diptych"] != stuck
        assert ask(service, "paligemma-mini", {}).status_code == 200
    assert f"diptych (process {stuck}) ended with status 1 and is restarted" in log.read_text()


def stream_from_a_stuck_decoder(service: RunningService, decoder_thread: int) -> None:
    form = {"task": "captioning", "max_new_tokens": "200", "stream": "true"}
    with (
        service.client() as client,
        client.stream("POST", "/v1/predict", data=form, files={"image": scene_png()}) as response,
    ):
        chunks = response.iter_text()
        next(chunks)
        stop_thread_until_its_process_ends(decoder_thread)
        for _ in chunks:
            pass


def test_a_start_that_hangs_ends_with_its_stacks_and_is_repeated(
    exported: ModelStore, tmp_path: Path
) -> None:
    """The manifest becomes a FIFO after the checks of the start: the next runner waits for its
    writer.
    """
    store = ModelStore(tmp_path / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    log = tmp_path / "service.log"
    model = "florence-2-mini"
    settings = {"DIPTYCH_START_TIMEOUT_S": "10", "DIPTYCH_MODELS": model}
    with forked_service(store.home, log, **settings) as service:
        manifest = store.newest(model) / MANIFEST_FILE
        content = manifest.read_bytes()
        manifest.unlink()
        os.mkfifo(manifest)
        os.kill(service.parts()[f"{model}-runner"], signal.SIGKILL)
        wait_until(lambda: "ended with status 1 and is restarted" in log.read_text())
        (manifest.parent / "new").write_bytes(content)
        (manifest.parent / "new").rename(manifest)
        service.wait_until_ready()
        assert ask(service, model, {}).status_code == 200
    assert "Timeout (0:00:10)!" in log.read_text()
    assert "in read_manifest" in log.read_text()

import asyncio
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from laboratory.bench.material.records import Question
from laboratory.bench.rounds.client import DiptychApi, PeerApi, drive
from laboratory.bench.rounds.workloads import BenchRequest
from tests.support.bench_rounds import question


@dataclass(slots=True)
class EchoServer:
    """Answers with the prompt after `seconds`, once `num_together` have come, and counts concurrent
    requests.

    An empty prompt is never answered.
    """

    seconds: float = 0.02
    num_together: int = 1
    num_now: int = 0
    max_now: int = 0
    num_received: int = 0
    bodies: list[tuple[str, bytes]] = field(default_factory=list)

    async def predict(self, request: Request) -> JSONResponse:
        async with request.form() as form:
            prompt = str(form["prompt"])
            image = form["image"]
            assert not isinstance(image, str)
            self.bodies.append((prompt, await image.read()))
        self.num_now, self.max_now = self.num_now + 1, max(self.max_now, self.num_now + 1)
        self.num_received += 1
        whole = math.ceil(self.num_received / self.num_together) * self.num_together
        while self.num_received < whole:
            await asyncio.sleep(0.001)
        await asyncio.sleep(self.seconds if prompt else 3600)
        self.num_now -= 1
        if prompt == "broken":
            return JSONResponse({}, 500)
        return JSONResponse({"text": prompt, "generated_tokens": int(str(form["max_new_tokens"]))})


@contextmanager
def serving(server: EchoServer) -> Iterator[str]:
    app = Starlette(routes=[Route("/predict", server.predict, methods=["POST"])])
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image.png"
    file.write_bytes(b"pixels")
    return file


def requests_with(image: Path, *prompts: str) -> list[BenchRequest]:
    return [
        BenchRequest(image, Question(prompt, {"task": "ocr"}, prompt, 8), index)
        for index, prompt in enumerate(prompts)
    ]


def test_every_request_is_answered_and_samples_are_in_order(image: Path) -> None:
    server = EchoServer()
    prompts = [f"prompt {index}" for index in range(9)]
    with serving(server) as url:
        done = drive(url, PeerApi(), requests_with(image, *prompts), 4, 60)
    assert [sample.answer.text for sample in done.samples] == prompts
    assert [sample.answer.generated_tokens for sample in done.samples] == list(range(9))
    assert not done.is_cut
    assert {data for _, data in server.bodies} == {b"pixels"}


def test_each_client_has_one_request_in_flight(image: Path) -> None:
    server = EchoServer(num_together=3)
    with serving(server) as url:
        drive(url, PeerApi(), requests_with(image, *["a"] * 12), 3, 60)
    assert server.max_now == 3


def test_latency_excludes_waiting_for_a_client(image: Path) -> None:
    with serving(EchoServer(seconds=0.1)) as url:
        done = drive(url, PeerApi(), requests_with(image, "a", "b", "c"), 1, 60)
    latencies_s = [sample.latency_s for sample in done.samples]
    assert min(latencies_s) >= 0.1
    assert sum(latencies_s) <= done.elapsed_s


def test_a_round_ends_at_its_time_limit_and_keeps_its_answers(image: Path) -> None:
    start_s = time.monotonic()
    with serving(EchoServer()) as url:
        done = drive(url, PeerApi(), requests_with(image, "a", "", "b"), 1, 2)
    assert time.monotonic() - start_s < 60
    assert done.is_cut
    assert [sample.answer.text for sample in done.samples] == ["a"]


def test_an_error_of_the_server_is_raised(image: Path) -> None:
    with serving(EchoServer()) as url, pytest.raises(aiohttp.ClientResponseError, match="500"):
        drive(url, PeerApi(), requests_with(image, "a", "broken"), 2, 60)


def test_our_api_receives_task_and_parameters_with_lists_as_json() -> None:
    listed = Question(
        "q", {"task": "open_vocabulary_detection", "labels": ["red circle"]}, "prompt", 8
    )
    fields = DiptychApi("florence-2-mini", {"constrained": "false"}).fields(
        BenchRequest(Path("1.png"), listed, 32)
    )
    assert fields == {
        "model": "florence-2-mini",
        "constrained": "false",
        "task": "open_vocabulary_detection",
        "labels": '["red circle"]',
        "max_new_tokens": "32",
    }


def test_a_peer_receives_the_exact_prompt() -> None:
    fields = PeerApi().fields(BenchRequest(Path("1.png"), question("ocr"), 32))
    assert fields == {"prompt": "prompt of ocr 0", "max_new_tokens": "32"}

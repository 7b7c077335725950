"""OpenAI's own Python package with files and batches of a running service, whose processes are
killed meanwhile.
"""

import base64
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.support.api_keys import write_keys
from tests.support.export_cli import ModelStore
from tests.support.running_service import GATEWAY, Access, RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until
from tests.system.test_answers import FLORENCE, PALIGEMMA

PREDICT = "/v1/predict"
CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")
END_S = 120
URLS = [f"data:image/png;base64,{base64.b64encode(scene_png(n)).decode()}" for n in range(10)]


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    """A service with two gateways and two API keys."""
    settings = {
        "DIPTYCH_API_KEYS_FILE": write_keys(folder / "keys", {"one": "", "two": ""}),
        "DIPTYCH_BATCHES_FOLDER": str(folder / "store"),
        "DIPTYCH_GATEWAY_WORKERS": "2",
    }
    access = Access(key="one")
    with forked_service(exported.home, folder / "service.log", access, **settings) as running:
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[openai.OpenAI]:
    with openai_client(service, "one") as one:
        yield one


def openai_client(service: RunningService, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=5)


def request_line(custom_id: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": path, "body": body}


def predict_line(number: int, model: str = FLORENCE) -> dict[str, Any]:
    body = {"image": URLS[number % len(URLS)], "task": "captioning", "model": model}
    return request_line(f"request-{number}", PREDICT, body)


def chat_line(number: int) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": "caption en"},
        {"type": "image_url", "image_url": {"url": URLS[number % len(URLS)]}},
    ]
    body = {"model": PALIGEMMA, "messages": [{"role": "user", "content": parts}]}
    return request_line(f"chat-{number}", CHAT, body)


def create(client: openai.OpenAI, lines: Sequence[dict[str, Any]]) -> Batch:
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    endpoint: Any = lines[0]["url"]
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def num_completed(client: openai.OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    return counts.completed


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    wait_until(lambda: client.batches.retrieve(batch.id).status in ENDED, END_S)
    return client.batches.retrieve(batch.id)


def output(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """Return the bodies of the answers by their custom ids, none of which is twice."""
    assert file_id is not None
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    answers = {line["custom_id"]: line["response"]["body"] for line in lines}
    assert len(answers) == len(lines)
    return answers


def online_answer(service: RunningService, line: dict[str, Any]) -> Any:
    with service.client() as http:
        return http.post(line["url"], json=line["body"]).raise_for_status().json()


def test_answers_are_those_of_the_online_endpoints(
    service: RunningService, client: openai.OpenAI
) -> None:
    predicts = [predict_line(number) for number in range(20)]
    chats = [chat_line(number) for number in range(20)]
    batches = [create(client, predicts), create(client, chats)]
    listed = [batch.id for batch in client.batches.list()]
    assert listed == [batches[1].id, batches[0].id]
    for batch, lines, part in zip(batches, (predicts, chats), ("result", "choices"), strict=True):
        whole = ended(client, batch)
        assert (whole.status, whole.error_file_id, whole.errors) == ("completed", None, None)
        assert whole.request_counts is not None
        assert whole.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
        answers = output(client, whole.output_file_id)
        for line in lines[: len(URLS)]:
            assert answers[line["custom_id"]][part] == online_answer(service, line)[part]
    assert metric(service, "diptych_requests_total", api="batch", status="ok") == 40
    wait_until(lambda: metric(service, "diptych_batch_requests_waiting") == 0)


def leader(service: RunningService) -> int:
    """Return the process that holds the lock of the store, which the log names."""
    log = service.log.read_text().splitlines()
    line = [line for line in log if "running the batches in" in line][-1]
    inode = Path(line.rpartition(" in ")[2], "running.lock").stat().st_ino
    locks = map(str.split, Path("/proc/locks").read_text().splitlines())
    return next(
        int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].endswith(f":{inode}")
    )


@pytest.mark.long
def test_kills_lose_and_repeat_nothing(service: RunningService, client: openai.OpenAI) -> None:
    lines = [predict_line(number, (FLORENCE, PALIGEMMA)[number % 2]) for number in range(240)]
    batch = create(client, lines)
    for part in (GATEWAY, f"{FLORENCE}-runner", GATEWAY):
        target = num_completed(client, batch) + 5
        wait_until(lambda target=target: num_completed(client, batch) > target, END_S)  # type: ignore[misc]
        pid = leader(service) if part == GATEWAY else service.parts()[part]
        os.kill(pid, signal.SIGKILL)
    assert num_completed(client, batch) < len(lines)
    whole = ended(client, batch)
    assert (whole.status, whole.error_file_id) == ("completed", None)
    answers = output(client, whole.output_file_id)
    assert answers.keys() == {line["custom_id"] for line in lines}
    service.wait_until_ready(END_S)
    for line in lines[:4]:
        assert answers[line["custom_id"]]["raw_text"] == online_answer(service, line)["raw_text"]

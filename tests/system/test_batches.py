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

from tests.support.api_keys import hash_of
from tests.support.export_cli import ModelStore
from tests.support.running_service import Access, RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until
from tests.system.test_answers import FLORENCE, PALIGEMMA

NUM_IMAGES = 10
GATEWAY = "diptych"
RUNNER = f"{FLORENCE}-runner"
PREDICT = "/v1/predict"
CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "cancelled", "expired")
END_S = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    """A service with two gateways and two API keys."""
    keys = folder / "keys"
    keys.write_text(f"{hash_of('one')}\n{hash_of('two')}\n")
    settings = {
        "DIPTYCH_API_KEYS_FILE": str(keys),
        "DIPTYCH_BATCHES_FOLDER": str(folder / "store"),
        "DIPTYCH_GATEWAY_WORKERS": "2",
    }
    with forked_service(
        exported.home, folder / "service.log", Access(key="one"), **settings
    ) as running:
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[openai.OpenAI]:
    with openai_client(service, "one") as one:
        yield one


def openai_client(service: RunningService, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=5)


def data_url(seed: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(scene_png(seed)).decode()}"


URLS = [data_url(seed) for seed in range(NUM_IMAGES)]


def predict_line(number: int, model: str = FLORENCE) -> dict[str, Any]:
    body = {"image": URLS[number % NUM_IMAGES], "task": "captioning", "model": model}
    return {"custom_id": f"request-{number}", "method": "POST", "url": PREDICT, "body": body}


def chat_line(number: int) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": "caption en"},
        {"type": "image_url", "image_url": {"url": URLS[number % NUM_IMAGES]}},
    ]
    body = {"model": PALIGEMMA, "messages": [{"role": "user", "content": parts}]}
    return {"custom_id": f"chat-{number}", "method": "POST", "url": CHAT, "body": body}


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


def output(client: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """Return the lines of a file by their custom ids, none of which is twice."""
    assert file_id is not None
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def expected(
    service: RunningService, path: str, lines: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    with service.client() as http:
        return {
            line["custom_id"]: http.post(path, json=line["body"]).raise_for_status().json()
            for line in lines
        }


def test_the_answers_are_those_of_the_online_endpoints(
    service: RunningService, client: openai.OpenAI
) -> None:
    predicts = [predict_line(number) for number in range(30)]
    chats = [chat_line(number) for number in range(30)]
    batches = [create(client, predicts), create(client, chats)]
    assert [batch.id for batch in client.batches.list()][:2] == [batches[1].id, batches[0].id]
    predicted, chatted = (ended(client, batch) for batch in batches)
    for batch in (predicted, chatted):
        assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
    answers = output(client, predicted.output_file_id)
    for custom_id, online in expected(service, PREDICT, predicts[:NUM_IMAGES]).items():
        response = answers[custom_id]["response"]
        assert response["status_code"] == 200
        assert response["body"]["result"] == online["result"]
    answers = output(client, chatted.output_file_id)
    for custom_id, online in expected(service, CHAT, chats[:NUM_IMAGES]).items():
        assert answers[custom_id]["response"]["body"]["choices"] == online["choices"]
    assert metric(service, "diptych_requests_total", api="batch", status="ok") == 60
    wait_until(lambda: metric(service, "diptych_batch_requests_waiting") == 0)


def kill(service: RunningService, part: str) -> None:
    """Kill one process of a part: of the gateways, the one that runs the batches."""
    process = service.parts()[part] if part != GATEWAY else leader(service)
    os.kill(process, signal.SIGKILL)


def leader(service: RunningService) -> int:
    """Return the process that holds the lock of the store."""
    store = next(
        line
        for line in service.log.read_text().splitlines()[::-1]
        if "running the batches in" in line
    )
    inode = str(Path(store.rpartition(" in ")[2], "running.sqlite3").stat().st_ino)
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return next(
        int(fields[4])
        for fields in locks
        if fields[1] == "POSIX" and fields[5].endswith(f":{inode}")
    )


def wait_for_more(client: openai.OpenAI, batch: Batch) -> None:
    before = num_completed(client, batch)
    wait_until(lambda: num_completed(client, batch) > before + 5, END_S)


@pytest.mark.long
def test_nothing_is_lost_or_twice_when_processes_are_killed(
    service: RunningService, client: openai.OpenAI
) -> None:
    lines = [predict_line(number, (FLORENCE, PALIGEMMA)[number % 2]) for number in range(240)]
    batch = create(client, lines)
    for part in (GATEWAY, RUNNER, GATEWAY):
        wait_for_more(client, batch)
        kill(service, part)
    assert num_completed(client, batch) < len(lines)
    whole = ended(client, batch)
    assert (whole.status, whole.error_file_id) == ("completed", None)
    answers = output(client, whole.output_file_id)
    assert answers.keys() == {line["custom_id"] for line in lines}
    service.wait_until_ready(END_S)
    for custom_id, online in expected(service, PREDICT, lines[:4]).items():
        assert answers[custom_id]["response"]["body"]["raw_text"] == online["raw_text"]


def test_a_batch_outlives_its_service(exported: ModelStore, tmp_path: Path) -> None:
    settings = {"DIPTYCH_BATCHES_FOLDER": str(tmp_path / "store"), "DIPTYCH_MODELS": FLORENCE}
    lines = [predict_line(number) for number in range(150)]
    with (
        forked_service(exported.home, tmp_path / "first.log", **settings) as first,
        openai_client(first, "-") as one,
    ):
        batch = create(one, lines)
        wait_until(lambda: num_completed(one, batch) > 5, END_S)
    with forked_service(exported.home, tmp_path / "second.log", **settings) as second:
        with openai_client(second, "-") as two:
            whole = ended(two, batch)
            assert output(two, whole.output_file_id).keys() == {line["custom_id"] for line in lines}
        assert 0 < metric(second, "diptych_requests_total", api="batch", status="ok") < 145


def test_a_cancelled_batch_ends_with_what_it_has(client: openai.OpenAI) -> None:
    batch = create(client, [predict_line(number) for number in range(500)])
    wait_until(lambda: num_completed(client, batch) > 0, END_S)
    assert client.batches.cancel(batch.id).status == "cancelling"
    cancelled = ended(client, batch)
    assert (cancelled.status, bool(cancelled.cancelled_at)) == ("cancelled", True)
    assert len(output(client, cancelled.output_file_id)) == num_completed(client, batch) < 500


def test_an_invalid_file_fails_with_the_numbers_of_its_lines(client: openai.OpenAI) -> None:
    failed = ended(client, create(client, [predict_line(0), predict_line(0), chat_line(0)]))
    assert failed.status == "failed"
    assert failed.errors is not None
    codes = [(error.line, error.code) for error in failed.errors.data or ()]
    assert codes == [(2, "duplicate_custom_id"), (3, "url_mismatch")]


def test_another_key_sees_nothing(service: RunningService, client: openai.OpenAI) -> None:
    batch = create(client, [predict_line(0)])
    with openai_client(service, "two") as other:
        assert list(other.files.list()) == []
        assert list(other.batches.list()) == []
        for call, given_id in [
            (other.files.retrieve, batch.input_file_id),
            (other.files.content, batch.input_file_id),
            (other.files.delete, batch.input_file_id),
            (other.batches.retrieve, batch.id),
            (other.batches.cancel, batch.id),
        ]:
            with pytest.raises(openai.NotFoundError):
                call(given_id)
    assert ended(client, batch).status == "completed"
    assert client.files.delete(batch.input_file_id).deleted

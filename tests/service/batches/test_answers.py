"""A request of a batch gets the answer or error of its endpoint, once there is memory for it."""

import asyncio

from service.batches.store import Store
from service.http.json_values import parsed_bytes
from tests.support.batch_lines import CHAT, CHAT_BODY, jsonl, line
from tests.support.batch_runs import (
    blocked,
    completed,
    create,
    ends,
    now,
    output,
    working,
)
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, context, make_core
from tests.support.rest_client import OCR
from wire.runner_channel import RunnerUnreachable


def test_each_request_has_its_answer(store: Store) -> None:
    batch = completed(store, create(store, *(line(str(number)) for number in range(30))))
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
    found = output(store.of("me"), batch.output_file_id)
    assert set(found) == {str(number) for number in range(30)}
    for each in found.values():
        assert each["response"]["status_code"] == 200
        assert each["response"]["body"]["result"] == {"text": "HELLO"}
        assert each["response"]["body"]["id"] == each["response"]["request_id"]
        assert each["error"] is None


def test_chats_and_comparisons_are_answered(store: Store) -> None:
    chat = completed(store, create(store, line("a", CHAT, CHAT_BODY), endpoint=CHAT))
    answer = output(store.of("me"), chat.output_file_id)["a"]["response"]["body"]
    assert answer["choices"][0]["message"]["content"] == "HELLO"
    compared = completed(store, create(store, line("a", "/v1/compare"), endpoint="/v1/compare"))
    answers = output(store.of("me"), compared.output_file_id)["a"]["response"]["body"]["answers"]
    assert [each["result"]["text"] for each in answers] == ["HELLO", "HELLO"]


def test_analyses_are_answered(store: Store) -> None:
    body = {"image": OCR["image"], "steps": [{"id": "text", "task": "ocr"}]}
    batch = completed(store, create(store, line("a", "/v1/analyze", body), endpoint="/v1/analyze"))
    (step,) = output(store.of("me"), batch.output_file_id)["a"]["response"]["body"]["steps"]
    assert step["answers"][0]["result"] == {"text": "HELLO"}


def test_errors_have_the_status_and_the_body_that_the_endpoint_would_answer(store: Store) -> None:
    lines = [
        line("good"),
        line("model", body={**OCR, "model": "gpt"}),
        line("image", body={"task": "ocr"}),
        line("bytes", body={**OCR, "image": "####"}),
        line("stream", body={**OCR, "stream": True}),
    ]
    batch = completed(store, create(store, *lines))
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 1, "failed": 4}
    assert set(output(store.of("me"), batch.output_file_id)) == {"good"}
    failed = output(store.of("me"), batch.error_file_id)
    statuses = {custom_id: each["response"]["status_code"] for custom_id, each in failed.items()}
    assert statuses == {"model": 404, "image": 400, "bytes": 415, "stream": 400}
    assert failed["model"]["response"]["body"]["error"]["code"] == "unknown_model"
    chat = completed(
        store, create(store, line("a", CHAT, {**CHAT_BODY, "stream": True}), endpoint=CHAT)
    )
    error = output(store.of("me"), chat.error_file_id)["a"]["response"]["body"]["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "stream")


HOSTILE_BODIES = {
    "depth": '{"image": 1, "task": ' + "[" * 490 + "]" * 490 + "}",
    "surrogate": r'{"image": "IMAGE", "task": "\ud800"}',
    "surrogate name": r'{"image": 1, "\ud800": 1}',
    "surrogate label": (
        r'{"image": "IMAGE", "task": "open_vocabulary_detection", "labels": ["\ud800"]}'
    ),
    "integer": '{"image": "IMAGE", "task": "ocr", "seed": 1' + "0" * 400 + "}",
    "infinity": '{"image": "IMAGE", "task": "ocr", "temperature": 1e400}',
    "minus infinity": '{"image": "IMAGE", "task": "ocr", "top_p": -1e400}',
    "region": '{"image": "IMAGE", "task": "region_description", "region": [0, 0, 1e400, 1]}',
}


def test_a_hostile_body_fails_its_own_request(store: Store) -> None:
    frame = '{"custom_id": "%s", "method": "POST", "url": "/v1/predict", "body": %s}\n'
    bodies = {name: body.replace("IMAGE", OCR["image"]) for name, body in HOSTILE_BODIES.items()}
    content = "".join(frame % item for item in bodies.items()).encode()
    batch = completed(store, create(store, line("first"), content, line("last")))
    assert output(store.of("me"), batch.output_file_id).keys() == {"first", "last"}
    failed = output(store.of("me"), batch.error_file_id)
    assert {
        name: each["response"]["status_code"] for name, each in failed.items()
    } == dict.fromkeys(bodies, 400)


def test_a_batch_whose_runner_is_gone_waits_and_can_be_cancelled(store: Store) -> None:
    async def scenario() -> None:
        decoder = FakeDecoder(FLORENCE_ANSWERS, failure=RunnerUnreachable())
        core = make_core(decoders={FLORENCE_ID: decoder})
        batch = create(store, line("a"))
        async with working(store, core):
            await until(lambda: len(decoder.specs) > 1)
            assert now(store, batch).status == "in_progress"
            store.of("me").cancel(batch.id)
            await until(ends(store, batch))
        assert now(store, batch).status == "cancelled"

    run(scenario())


def test_a_request_waits_until_there_is_memory_for_its_line(store: Store) -> None:
    data = jsonl(line("a")).strip()
    core = make_core(max_bytes=len(data) + parsed_bytes(data))

    async def scenario() -> None:
        online = context()
        core.hold(online, 1)  # its client gets half of the memory
        batch = create(store, line("a"))
        async with working(store, core):
            await until(lambda: now(store, batch).status == "in_progress")
            await asyncio.sleep(0.1)
            assert now(store, batch).request_counts.completed == 0
            await core.leave(online)
            await until(ends(store, batch))
        assert now(store, batch).request_counts.completed == 1
        assert core.num_held_bytes == 0

    run(scenario())


def test_a_request_in_flight_holds_its_line_and_a_cancelled_one_does_not(store: Store) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        data = jsonl(line("a")).strip()
        create(store, line("a"))
        async with working(store, core):
            await until(lambda: decoder.num_waiting)
            assert core.num_held_bytes == len(data) + parsed_bytes(data)
        assert core.num_held_bytes == 0

    run(scenario())

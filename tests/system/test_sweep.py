"""No value of a field of a route stalls the gateway, keeps its memory, or fails any key.

Routes and fields are found in the running service (tests/support/sweep.py). `make test` sends
bodies of 100 kB, `make test-long` of the largest size.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import grpc
import httpx
import psutil
import pytest

from tests.support.api_keys import write_keys
from tests.support.export_cli import ModelStore
from tests.support.fake_service import data_url
from tests.support.label_studio_config import labelled, view
from tests.support.running_service import (
    GATEWAY,
    Access,
    RunningService,
    bearer,
    forked_service,
)
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric, samples, total
from tests.support.sweep import Case, GrpcSweep, HttpSweep
from tests.support.waiting import repeating

MODEL = "florence-2-mini"
KEY = "sweeping"
OTHER_KEY = "other"
SIZES = [100_000, pytest.param(19_000_000, marks=pytest.mark.long)]
MAX_LAG_S = 0.1
KEPT_BODIES = 3
NOISE_BYTES = 40_000_000  # caches and arenas of the allocator
NUM_TRIES = 5  # a machine that is busy makes a loop late, too, but not each time in the same case
FAILED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)

Send = Callable[[Case], str | None]  # returns why a case fails


@pytest.fixture(scope="module")
def keyed(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("sweep")
    settings = {
        "DIPTYCH_API_KEYS_FILE": write_keys(folder / "keys", {KEY: "", OTHER_KEY: ""}),
        "DIPTYCH_BATCHES_FOLDER": str(folder / "batches"),
        "DIPTYCH_IMAGES_FOLDER": str(folder / "images"),
    }
    access = Access(key=KEY)
    with forked_service(exported.home, folder / "service.log", access, **settings) as service:
        yield service


@pytest.fixture
def client(keyed: RunningService) -> Iterator[httpx.Client]:
    with keyed.client() as http:
        yield http


def polite_client(service: RunningService) -> AbstractContextManager[object]:
    """Send something small with another key, again and again; it must be answered."""
    url = f"{service.url}/v1/models"
    headers = bearer(OTHER_KEY)
    return repeating(lambda: httpx.get(url, headers=headers, timeout=60).raise_for_status(), 0.2)


def num_late(service: RunningService) -> float:
    measured = samples(service)
    name = "diptych_event_loop_lag_seconds"
    return total(measured, f"{name}_count") - total(measured, f"{name}_bucket", le=str(MAX_LAG_S))


def problems_of(cases: Iterable[Case], send: Send, service: RunningService) -> list[str]:
    """Send all cases; return those that fail or make the event loop late."""
    problems = []
    late_before = num_late(service)
    for case in cases:
        start_s = time.monotonic()
        failure = send(case)
        if failure is None and time.monotonic() - start_s > MAX_LAG_S:
            late_after = num_late(service)
            if late_after > late_before and is_always_late(case, send, service):
                failure = "the event loop is late"
            late_before = late_after
        if failure is not None:
            problems.append(f"{case}: {failure}")
            print(problems[-1], flush=True)  # the largest sweep takes half an hour
    return problems


def is_always_late(case: Case, send: Send, service: RunningService) -> bool:
    gateway = psutil.Process(service.parts()[GATEWAY])
    for _ in range(NUM_TRIES):
        before = num_late(service)
        start_s = sum(gateway.cpu_times()[:2])
        send(case)
        processor_s = sum(gateway.cpu_times()[:2]) - start_s
        time.sleep(0.1)  # until the loop has measured
        if processor_s < MAX_LAG_S or num_late(service) == before:
            return False
    return True


def http_sweep(client: httpx.Client, num_bytes: int) -> HttpSweep:
    """Return the sweep of the document, with values of fields that have no small set of values."""
    url = data_url(scene_png())
    tensor = {"datatype": "BYTES", "shape": [1]}
    config = view(labelled("RectangleLabels", "circle"))
    valid = {
        "inputs": [
            {"name": "image", **tensor, "data": [url]},
            {"name": "task", **tensor, "data": ["ocr"]},
        ],
        "image": url,
        "images": [url],
        "url": url,
        "model": MODEL,
        "region": [10, 10, 60, 60],
        "content": [
            {"type": "text", "text": "<OCR>"},
            {"type": "image_url", "image_url": {"url": url}},
        ],
        "model_id": MODEL,
        "version": "1",
        "status": "404",
        "schema": config,
        "label_config": config,
        "tasks": [{"id": 1, "data": {"image": url}}],
    }
    document = client.get("/openapi.json").raise_for_status().json()
    return HttpSweep(document, valid, num_bytes)


def respond(client: httpx.Client, case: Case) -> httpx.Response:
    headers = {"Content-Type": case.content_type} if case.content_type else {}
    return client.request(case.method, case.path, content=case.body, headers=headers)


def http_failure(client: httpx.Client, case: Case) -> str | None:
    response = respond(client, case)
    return f"{response.status_code} {response.text[:200]}" if response.is_server_error else None


def grpc_failure(channel: grpc.Channel, case: Case) -> str | None:
    is_stream = case.method.endswith(("Stream", "Watch"))
    make: Any = channel.unary_stream if is_stream else channel.unary_unary
    try:
        answer = make(case.path)(
            case.body, timeout=10, metadata=[("authorization", f"Bearer {KEY}")]
        )
        if is_stream:
            next(iter(answer))
            answer.cancel()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code.name if code in FAILED else None
    return None


@pytest.mark.parametrize("num_bytes", SIZES)
def test_every_http_field_is_bounded(
    keyed: RunningService, client: httpx.Client, num_bytes: int
) -> None:
    sweep = http_sweep(client, num_bytes)
    problems: list[str] = []
    with polite_client(keyed):
        for method, path, operation in sweep.distinct_routes():
            before = keyed.resident_bytes()
            cases = sweep.cases(method, path, operation)
            problems += problems_of(cases, partial(http_failure, client), keyed)
            growth = keyed.resident_bytes() - before
            if growth > KEPT_BODIES * num_bytes + NOISE_BYTES:
                problems.append(f"{method} {path}: {growth / 1e6:.0f} MB stay")
    assert not problems, "\n".join(problems)
    assert metric(keyed, "diptych_request_memory_bytes") == 0


@pytest.mark.parametrize("num_bytes", SIZES)
def test_every_grpc_field_is_bounded(keyed: RunningService, num_bytes: int) -> None:
    valid = {"image": scene_png(), "task": "captioning", "id": "a"}
    with grpc.insecure_channel(keyed.grpc_address) as channel, polite_client(keyed):
        sweep = GrpcSweep(channel, valid, num_bytes)
        send = partial(grpc_failure, channel)
        problems = problems_of(sweep.cases(), send, keyed)
        before = keyed.resident_bytes()
        problems += problems_of(sweep.cases(), send, keyed)  # what stays would stay again
    assert not problems, "\n".join(problems)
    assert keyed.resident_bytes() - before < KEPT_BODIES * num_bytes + NOISE_BYTES
    assert metric(keyed, "diptych_request_memory_bytes") == 0


def test_valid_bodies_of_the_sweep_are_answered(client: httpx.Client) -> None:
    sweep = http_sweep(client, 1)
    num_answered = 0
    for method, path, operation in sweep.routes():
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" not in content or "batches" in path:
            continue
        for schema in sweep.alternatives(content["application/json"]["schema"]):
            body = sweep.example(schema)
            response = client.request(method, sweep.filled(path), json=body)
            assert response.status_code in (200, 422), (path, response.text)
            num_answered += response.is_success
    assert num_answered > 20


def test_every_field_has_a_bound_in_the_schema(client: httpx.Client) -> None:
    sweep = http_sweep(client, 1)
    for _, path, operation in sweep.routes():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert list(sweep.unbounded_fields(content["schema"])) == [], path

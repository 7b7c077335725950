"""Memory of requests: counted while they are read and parsed, held until they end, whatever the
interface.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np
import pytest

from service.http.json_values import parsed_bytes
from tests.support.fake_service import make_core
from tests.support.rest_client import OCR, SMALL_PNG, client, error_of

ROOM = 20_000
JSON = {"Content-Type": "application/json"}


def binary_infer() -> dict[str, Any]:
    size = {"binary_data_size": len(SMALL_PNG) + 4}
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": size}
    task = {"name": "task", "shape": [1], "datatype": "BYTES", "data": ["ocr"]}
    head = json.dumps({"inputs": [image, task]}).encode()
    tensor = np.uint32(len(SMALL_PNG)).tobytes() + SMALL_PNG
    return {
        "content": head + tensor,
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }


CALLS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "json": ("/v1/predict", {"json": OCR}),
    "form": ("/v1/predict", {"data": {"task": "ocr"}, "files": {"image": SMALL_PNG}}),
    "compare": ("/v1/compare", {"json": OCR}),
    "stream": ("/v1/predict", {"json": {**OCR, "stream": True}}),
    "open inference": ("/v2/models/florence-2-mini/infer", binary_infer()),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_request_holds_memory_and_gives_it_back(name: str) -> None:
    path, options = CALLS[name]
    core = make_core(max_bytes=ROOM)
    api = client(core)
    for _ in range(1 + ROOM // len(SMALL_PNG)):
        assert api.send("POST", path, **options).status_code == 200
    assert core.places.num_bytes == 0


@pytest.mark.parametrize("name", CALLS)
def test_a_request_above_the_memory_is_refused(name: str) -> None:
    path, options = CALLS[name]
    core = make_core(max_bytes=100)
    response = client(core).send("POST", path, **options)
    assert response.status_code == 429
    assert "bytes of requests in memory" in response.text
    assert core.places.num_bytes == 0


def test_memory_of_parsed_values_is_counted() -> None:
    body = '{"image": "", "task": "ocr", "labels": [' + ",".join(["{}"] * 4_000) + "]}"
    api = client(make_core(max_bytes=10 * len(body)))
    response = api.send("POST", "/v1/predict", content=body, headers=JSON)
    assert error_of(response)["code"] == "overloaded"


def test_one_character_beyond_latin_1_widens_a_whole_string() -> None:
    narrow = b'"' + b"a" * 1000 + b'"'
    assert parsed_bytes(narrow) == 2 * len(narrow)
    for wide in ("é".encode(), rb"\ud83d\ude00"):
        widened = narrow.replace(b"a", wide, 1)
        assert parsed_bytes(widened) == 4 * len(widened)


def test_a_body_larger_than_the_memory_is_not_read_whole() -> None:
    num_read = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal num_read
        while True:
            num_read += 1
            yield b"x" * 1000

    core = make_core(max_bytes=5_000)
    response = client(core).send("POST", "/v1/predict", content=endless(), headers=JSON)
    assert error_of(response)["code"] == "overloaded"
    assert num_read == 6

"""Triton's own clients, unchanged, against the running service: metadata, the answers of REST, its
errors, ids.
"""

from functools import cache
from typing import Any

import httpx
import pytest

from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.triton_client import Infer, triton
from tests.system.test_answers import FEW, FLORENCE, PALIGEMMA, VARYING, post_form

TRANSPORTS = ["http", "grpc"]
CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
}


def ask(
    service: RunningService, transport: str, *calls: Infer | tuple[str, list[str]]
) -> list[dict[str, Any]]:
    address = service.grpc_address if transport == "grpc" else service.url.removeprefix("http://")
    return triton(transport, address, calls)


def infer(fields: dict[str, Any], **form: Any) -> Infer:
    model = fields.get("model", FLORENCE)
    return Infer(
        model,
        scene_png(),
        {name: value for name, value in fields.items() if name != "model"},
        **form,
    )


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in VARYING}


@pytest.mark.parametrize(
    ("transport", "form"),
    [
        ("http", {}),
        ("grpc", {}),
        ("http", {"is_json": True, "outputs": ("result",)}),
        ("http", {"is_batched": True, "outputs": ("result",)}),
        ("grpc", {"is_batched": True, "outputs": ("result",)}),
    ],
    ids=["http", "grpc", "http json", "http batched", "grpc batched"],
)
def test_the_answer_to_every_request_is_that_of_rest(
    service: RunningService, transport: str, form: dict[str, Any]
) -> None:
    outcomes = ask(service, transport, *(infer(fields, **form) for fields in FEW))
    told = [comparable(outcome["value"]["result"]) for outcome in outcomes]
    assert told == expected(service)


@cache
def expected(service: RunningService) -> list[dict[str, Any]]:
    with service.client() as client:
        answers = [
            post_form(client, "/v1/predict", scene_png(), {"model": FLORENCE, **fields})
            for fields in FEW
        ]
    return [comparable(answer.json()) for answer in answers]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_server_and_models_are_there(service: RunningService, transport: str) -> None:
    calls: list[tuple[str, list[str]]] = [
        ("is_server_live", []),
        ("is_server_ready", []),
        ("is_model_ready", [FLORENCE]),
        ("is_model_ready", [PALIGEMMA, "1"]),
        ("is_model_ready", ["gpt"]),
        ("is_model_ready", [FLORENCE, "2"]),
        ("get_server_metadata", []),
        ("get_model_metadata", [FLORENCE]),
        ("get_model_config", [FLORENCE]),
    ]
    *ready, server, model, config = [
        outcome["value"] for outcome in ask(service, transport, *calls)
    ]
    assert ready == [True, True, True, True, False, False]
    assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("diptych", True)
    assert (model["name"], model["versions"]) == (FLORENCE, ["1"])
    assert [(tensor["name"], tensor["datatype"]) for tensor in model["outputs"]] == [
        ("result", "BYTES")
    ]
    inputs = config.get("config", config)["input"]  # a message of its own over gRPC
    assert [tensor["name"] for tensor in inputs] == [tensor["name"] for tensor in model["inputs"]]
    assert [tensor["name"] for tensor in inputs if not tensor.get("optional")] == ["image", "task"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("fields", "image", "status"),
    [
        ({"task": "nothing"}, scene_png(), 400),
        ({"task": "object_detection", "model": PALIGEMMA}, scene_png(), 422),
        ({"task": "ocr", "model": "gpt"}, scene_png(), 404),
        ({"task": "ocr"}, b"no image", 415),
    ],
)
def test_an_error_is_that_of_rest(
    service: RunningService,
    client: httpx.Client,
    transport: str,
    fields: dict[str, Any],
    image: bytes,
    status: int,
) -> None:
    call = infer(fields)
    (outcome,) = ask(service, transport, Infer(call.model, image, call.fields))
    rest = post_form(client, "/v1/predict", image, fields)
    assert rest.status_code == status
    assert outcome["error"] == rest.json()["error"]["message"]
    assert outcome["status"] == (
        str(status) if transport == "http" else f"StatusCode.{CODES[status]}"
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ids_options_and_timeouts_of_the_client_are_heard(
    service: RunningService, transport: str
) -> None:
    named, short, late = ask(
        service,
        transport,
        infer({"task": "ocr"}, options={"request_id": "mine-1", "model_version": "1"}),
        infer({"task": "captioning"}, options={"parameters": {"max_new_tokens": 4}}),
        infer({"task": "captioning"}, options={"timeout": 100}),
    )
    assert (named["value"]["id"], named["value"]["result"]["id"]) == ("mine-1", "mine-1")
    assert short["value"]["result"]["usage"]["generated_tokens"] == 4
    assert late["status"] in ("504", "StatusCode.DEADLINE_EXCEEDED")

import asyncio
import gzip
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ID,
    data_url,
    make_core,
)
from tests.support.rest_client import OCR, SETTINGS, SMALL_PNG, Client, client

INFER = f"/v2/models/{FLORENCE_ID}/infer"
VARYING = {"timings_ms"}


def tensor(name: str, *values: object, datatype: str = "BYTES") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": list(values)}


OCR_INPUTS = [tensor("image", data_url(SMALL_PNG)), tensor("task", "ocr")]


def infer(
    api: Client | None = None, path: str = INFER, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    content = json.dumps({"inputs": OCR_INPUTS, **body})
    return (api or client()).send("POST", path, content=content, headers=headers or {})


def result_of(response: httpx.Response) -> dict[str, Any]:
    (output,) = response.json()["outputs"]
    assert {name: output[name] for name in ("name", "datatype", "shape")} == {
        "name": "result",
        "datatype": "BYTES",
        "shape": [1],
    }
    result: dict[str, Any] = json.loads(output["data"][0])
    return result


def message_of(response: httpx.Response, status: int) -> str:
    """Return the message of an error in the protocol's form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    message = response.json()["error"]
    assert isinstance(message, str)
    return message


def without_varying(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in VARYING}


@pytest.mark.parametrize(
    "fields",
    [{"task": "ocr"}, {"task": "instance_segmentation", "phrase": "red circle"}],
    ids=lambda fields: fields["task"],
)
def test_the_result_is_the_body_of_predict(fields: dict[str, str]) -> None:
    inputs = [OCR_INPUTS[0], *(tensor(name, value) for name, value in fields.items())]
    response = infer(id="mine", inputs=inputs)
    expected = client().predict(OCR | fields, X_Request_Id="mine").json()
    assert without_varying(result_of(response)) == without_varying(expected)
    assert {name: response.json()[name] for name in ("id", "model_name", "model_version")} == {
        "id": "mine",
        "model_name": FLORENCE_ID,
        "model_version": "1",
    }
    assert response.headers["x-request-id"] == "mine"


def test_raw_tensors_have_a_raw_result() -> None:
    raw = [struct.pack("<I", len(data)) + data for data in (SMALL_PNG, b"ocr")]
    inputs = [
        {
            "name": name,
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"binary_data_size": len(data)},
        }
        for name, data in zip(("image", "task"), raw, strict=True)
    ]
    document = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(document))}
    response = client().send("POST", INFER, content=document + b"".join(raw), headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    result = response.content[length:]
    assert (
        len(result)
        == output["parameters"]["binary_data_size"]
        == struct.unpack_from("<I", result)[0] + 4
    )
    assert json.loads(result[4:])["result"] == {"text": "HELLO"}


def test_id_invalid_in_a_header_is_returned_in_the_body_only() -> None:
    response = infer(id="\n ä")
    assert response.json()["id"] == "\n ä"
    assert result_of(response)["id"] == response.headers["x-request-id"]


def test_path_may_include_the_version() -> None:
    path = f"/v2/models/{PALIGEMMA_ID}/versions/1"
    assert client().get(path).json()["name"] == PALIGEMMA_ID
    assert result_of(infer(path=f"{path}/infer"))["model"] == PALIGEMMA_ID


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"inputs": OCR_INPUTS[:1]}, 400, "task is missing"),
        ({"inputs": OCR_INPUTS[1:]}, 400, "image is missing"),
        ({"inputs": [*OCR_INPUTS, tensor("labels", "a")]}, 400, "labels is not a parameter of ocr"),
        ({"inputs": [*OCR_INPUTS, tensor("seed", 1.5, datatype="INT64")]}, 400, "seed is 1.5"),
        (
            {"inputs": [*OCR_INPUTS, tensor("constrained", 1, datatype="BOOL")]},
            400,
            "constrained is 1",
        ),
        (
            {"inputs": [*OCR_INPUTS, tensor("temperature", 1e-300, datatype="FP64")]},
            400,
            "0 or from 1e-06 to 2",
        ),
        (
            {"inputs": [*OCR_INPUTS, tensor("temperature", True, datatype="FP64")]},
            400,
            "temperature is True",
        ),
        ({"inputs": [*OCR_INPUTS, tensor("x", "a")]}, 400, "unknown input 'x'"),
        ({"outputs": [{"name": "x"}]}, 400, "unknown output 'x'"),
        ({"parameters": {"timeout": -1}}, 400, "timeout"),
        ({"inputs": [tensor("image", "?"), OCR_INPUTS[1]]}, 415, "image is not base64"),
        ({"inputs": [tensor("image", "QUJD"), OCR_INPUTS[1]]}, 415, ""),
    ],
)
def test_error_has_the_form_of_the_protocol_and_the_status_of_the_contract(
    body: dict[str, Any], status: int, reason: str
) -> None:
    response = infer(id="mine", **body)
    assert reason in message_of(response, status)


def test_error_of_the_core_has_the_request_id() -> None:
    wrong = [OCR_INPUTS[0], tensor("task", "nothing")]
    assert infer(id="mine", inputs=wrong).headers["x-request-id"] == "mine"


def test_unsupported_task_is_rejected() -> None:
    inputs = [OCR_INPUTS[0], tensor("task", "object_detection")]
    assert "does not offer" in message_of(
        infer(path=f"/v2/models/{PALIGEMMA_ID}/infer", inputs=inputs), 422
    )


@pytest.mark.parametrize("path", ["/v2/models/x", f"/v2/models/{FLORENCE_ID}/versions/2"])
@pytest.mark.parametrize("end", ["", "/ready", "/config"])
def test_unknown_model_or_version_is_404(path: str, end: str) -> None:
    assert message_of(client().get(path + end), 404)
    assert message_of(infer(path=f"{path}/infer"), 404)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/", 404),
        ("POST", "/v2", 405),
        ("POST", "/v2/health/live", 405),
    ],
)
def test_unknown_path_or_method_has_the_error_form_of_the_protocol(
    method: str, path: str, status: int
) -> None:
    assert "no route for" in message_of(client().send(method, path), status)


def test_compressed_body_is_rejected() -> None:
    body = gzip.compress(json.dumps({"inputs": OCR_INPUTS}).encode())
    response = client().send("POST", INFER, content=body, headers={"Content-Encoding": "gzip"})
    assert (
        message_of(response, 400)
        == "Content-Encoding is 'gzip'; compressed bodies are not supported"
    )


def test_body_over_the_limit_is_rejected() -> None:
    response = client().send("POST", INFER, content=b" " * (SETTINGS.max_body_bytes + 1))
    assert str(SETTINGS.max_body_bytes) in message_of(response, 413)


@pytest.mark.parametrize(
    "end", ["health/ready", f"models/{FLORENCE_ID}", f"models/{FLORENCE_ID}/ready"]
)
def test_starting_service_is_live_and_not_ready(end: str) -> None:
    starting = Client(RestBoundary(SETTINGS))
    assert starting.get("/v2/health/live").json() == {"live": True}
    assert "starting" in message_of(starting.get(f"/v2/{end}"), 503)


def test_only_the_model_without_runner_is_not_ready() -> None:
    api = client(make_core(is_up=False))
    assert FLORENCE_ID in message_of(api.get("/v2/health/ready"), 503)
    assert FLORENCE_ID in message_of(api.get(f"/v2/models/{FLORENCE_ID}/ready"), 503)
    assert api.get(f"/v2/models/{PALIGEMMA_ID}/ready").json() == {
        "name": PALIGEMMA_ID,
        "ready": True,
    }
    assert client().get("/v2/health/ready").json() == {"ready": True}


def test_only_server_metadata_and_health_need_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(hashlib.sha256(b"my-key").hexdigest())
    api = client(keys=ApiKeys.load(file))
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        assert api.get(path).status_code == 200
    for path in ("", "/config", "/ready"):
        assert "no API key" in message_of(api.get(f"/v2/models/{FLORENCE_ID}{path}"), 401)
    assert "no API key" in message_of(infer(api), 401)
    assert infer(api, headers={"Authorization": "Bearer my-key"}).status_code == 200


def test_a_request_ends_at_its_timeout() -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
    response = infer(
        client(make_core(decoders={FLORENCE_ID: decoder})), parameters={"timeout": 50_000}
    )
    assert message_of(response, 504)


def test_metadata_and_config_list_the_inputs_of_the_supported_tasks() -> None:
    metadata, config = (
        client().get(f"/v2/models/{FLORENCE_ID}{end}").json() for end in ("", "/config")
    )
    shapes = {each["name"]: (each["datatype"], each["shape"]) for each in metadata["inputs"]}
    assert shapes["image"] == shapes["task"] == shapes["detail"] == ("BYTES", [1])
    assert shapes["labels"] == ("BYTES", [-1])
    assert shapes["region"] == ("FP64", [4])
    assert shapes["seed"] == ("INT64", [1])
    assert shapes["temperature"] == ("FP64", [1])
    assert shapes["constrained"] == ("BOOL", [1])
    assert [each["name"] for each in config["input"] if not each["optional"]] == ["image", "task"]
    assert [each["name"] for each in config["input"]] == list(shapes)
    assert config["max_batch_size"] == 0

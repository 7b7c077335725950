import contextlib
import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, ServiceError, UnsupportedImage
from service.http.boundary import RestBoundary
from service.open_inference.api import (
    InferJson,
    read_request,
    request_body,
    request_context,
)
from tests.support.api_keys import api_keys
from tests.support.fake_service import (
    FLORENCE_ID,
    PALIGEMMA_ID,
    context,
    data_url,
    make_core,
    served_models,
)
from tests.support.rest_client import OCR, SETTINGS, SMALL_PNG, Client, client

INFER = f"/v2/models/{FLORENCE_ID}/infer"
VARYING = {"timings_ms"}


def tensor(name: str, *values: object, datatype: str = "BYTES") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": list(values)}


TASK = {"name": "task", "datatype": "BYTES", "shape": [1]}


def sized(size: object, **fields: Any) -> dict[str, Any]:
    return {**TASK, "parameters": {"binary_data_size": size}, **fields}


OCR_INPUTS = [tensor("image", data_url(SMALL_PNG)), tensor("task", "ocr")]


def infer(
    api: Client | None = None, path: str = INFER, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    content = json.dumps({"inputs": OCR_INPUTS, **body})
    return (api or client()).send("POST", path, content=content, headers=headers or {})


def result_of(response: httpx.Response) -> dict[str, Any]:
    (output,) = response.json()["outputs"]
    (data,) = output.pop("data")
    assert output == {"name": "result", "datatype": "BYTES", "shape": [1]}
    result: dict[str, Any] = json.loads(data)
    return result


def message_of(response: httpx.Response, status: int) -> str:
    """Return the message of an error in the protocol's form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    message = response.json()["error"]
    assert isinstance(message, str)
    return message


def test_result_is_the_body_of_predict() -> None:
    fields = {"task": "instance_segmentation", "phrase": "red circle"}
    inputs = [OCR_INPUTS[0], *(tensor(name, value) for name, value in fields.items())]
    response = infer(id="mine", inputs=inputs)
    expected = client().predict(OCR | fields, X_Request_Id="mine").json()
    assert result_of(response) | {"timings_ms": {}} == expected | {"timings_ms": {}}
    document = response.json()
    names = (document["id"], document["model_name"], document["model_version"])
    assert names == ("mine", FLORENCE_ID, "1")
    assert response.headers["x-request-id"] == "mine"


def test_raw_tensors_have_a_raw_result() -> None:
    raw = [raw_bytes(data) for data in (SMALL_PNG, b"ocr")]
    inputs = [sized(len(raw[0]), name="image"), sized(len(raw[1]))]
    document = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(document))}
    response = client().send("POST", INFER, content=document + b"".join(raw), headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    result = response.content[length:]
    assert len(result) == output["parameters"]["binary_data_size"]
    assert len(result) == struct.unpack_from("<I", result)[0] + 4
    assert json.loads(result[4:])["result"] == {"text": "HELLO"}


def test_id_unfit_for_a_header() -> None:
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
        ({"inputs": [tensor("image", "?"), OCR_INPUTS[1]]}, 415, "image is not base64"),
        ({"inputs": [OCR_INPUTS[0], tensor("task", "object_detection")]}, 422, "does not offer"),
        ({"id": "x" * (SETTINGS.max_body_bytes + 1)}, 413, str(SETTINGS.max_body_bytes)),
    ],
)
def test_error_has_the_form_of_the_protocol(body: dict[str, Any], status: int, reason: str) -> None:
    path = f"/v2/models/{PALIGEMMA_ID}/infer"
    response = infer(path=path, **{"id": "mine", **body})
    assert reason in message_of(response, status)
    assert (response.headers["x-request-id"] == "mine") == (status != 413)


@pytest.mark.parametrize("path", ["/v2/models/x", f"/v2/models/{FLORENCE_ID}/versions/2"])
@pytest.mark.parametrize("end", ["", "/ready", "/config"])
def test_unknown_model_or_version_is_404(path: str, end: str) -> None:
    assert message_of(client().get(path + end), 404)
    assert message_of(infer(path=f"{path}/infer"), 404)


@pytest.mark.parametrize(
    "end", ["health/ready", f"models/{FLORENCE_ID}", f"models/{FLORENCE_ID}/ready"]
)
def test_starting_service_is_live_and_not_ready(end: str) -> None:
    starting = Client(RestBoundary(SETTINGS))
    assert starting.get("/v2/health/live").json() == {"live": True}
    assert "starting" in message_of(starting.get(f"/v2/{end}"), 503)


def test_model_without_runner_is_not_ready() -> None:
    api = client(make_core(is_up=False))
    for path in ("/v2/health/ready", f"/v2/models/{FLORENCE_ID}/ready"):
        assert FLORENCE_ID in message_of(api.get(path), 503)
    ready = {"name": PALIGEMMA_ID, "ready": True}
    assert api.get(f"/v2/models/{PALIGEMMA_ID}/ready").json() == ready
    assert client().get("/v2/health/ready").json() == {"ready": True}


def test_metadata_and_health_need_no_key() -> None:
    api = client(keys=api_keys("my-key"))
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        assert api.get(path).status_code == 200
    for path in ("", "/config", "/ready"):
        assert "no API key" in message_of(api.get(f"/v2/models/{FLORENCE_ID}{path}"), 401)
    assert "no API key" in message_of(infer(api), 401)
    assert infer(api, headers={"Authorization": "Bearer my-key"}).status_code == 200


def test_metadata_lists_inputs() -> None:
    path = f"/v2/models/{FLORENCE_ID}"
    metadata, config = (client().get(path + end).json() for end in ("", "/config"))
    shapes = {item["name"]: (item["datatype"], item["shape"]) for item in metadata["inputs"]}
    expected = {
        "image": ("BYTES", [1]),
        "task": ("BYTES", [1]),
        "labels": ("BYTES", [-1]),
        "region": ("FP64", [4]),
        "seed": ("INT64", [1]),
        "temperature": ("FP64", [1]),
        "constrained": ("BOOL", [1]),
    }
    assert shapes.items() >= expected.items()
    assert [item["name"] for item in config["input"] if not item["optional"]] == ["image", "task"]
    assert [item["name"] for item in config["input"]] == list(shapes)
    assert config["max_batch_size"] == 0


def read_body(raw: bytes = b"", **fields: Any) -> InferJson:
    document = json.dumps({"inputs": [], **fields}).encode()
    return read_request(document + raw, str(len(document)) if raw else None)


def test_raw_bytes_follow_in_order() -> None:
    short = {**TASK, "name": "detail", "data": ["short"]}
    inputs = [sized(5), short, sized(0, name="labels"), sized(3, name="image")]
    request = read_body(b"12345678", inputs=inputs, id="mine", parameters={"seed": 1})
    expected = {"task": b"12345", "detail": ["short"], "labels": b"", "image": b"678"}
    assert {tensor.name: tensor.data or tensor._raw for tensor in request.inputs} == expected
    assert (request.id, request.parameters, request.wants_raw()) == ("mine", {"seed": 1}, False)


@pytest.mark.parametrize(
    ("data", "elements"), [(["a", "b"], ["a", "b"]), ([["a", "b"]], ["a", "b"]), ([], [])]
)
def test_batch_of_one_may_be_nested(data: list[Any], elements: list[str]) -> None:
    (tensor,) = read_body(inputs=[{**TASK, "data": data}]).inputs
    assert tensor.elements(1) == elements


@pytest.mark.parametrize(
    ("default", "flags", "wants_raw"),
    [
        (None, [], False),
        (True, [], True),
        (True, [False], False),
        (False, [True], True),
        (True, [None], True),
        (None, [None], False),
    ],
)
def test_binary_data_of_an_output(
    default: bool | None, flags: list[bool | None], wants_raw: bool
) -> None:
    parameters = {} if default is None else {"binary_data_output": default}
    outputs: list[dict[str, object]] = []
    for is_raw in flags:
        outputs.append({"name": "result", "parameters": {"binary_data": is_raw}})
    request = read_body(parameters=parameters, outputs=outputs)
    assert request.wants_raw() == wants_raw


@pytest.mark.parametrize(
    ("raw", "fields", "reason"),
    [
        (b"1234", {"inputs": [sized(5)]}, "needs data, or binary_data_size"),
        (b"123456", {"inputs": [sized(5)]}, "1 bytes after its last input"),
        (b"12", {"inputs": [sized(10**400)]}, "needs data, or binary_data_size"),
        (b"1", {"inputs": [sized(-1)]}, "inputs.0.parameters.binary_data_size"),
        (b"1", {"inputs": [sized(1, data=["a"])]}, "needs data, or binary_data_size"),
        (b"", {"inputs": [TASK]}, "needs data, or binary_data_size"),
        (b"", {"parameters": {"binary_data_output": "yes"}}, "must be true or false"),
        (b"", {"x": 5}, "unknown field 'x'; the fields are id, inputs"),
    ],
)
def test_invalid_body_is_rejected(raw: bytes, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_body(raw, **fields)
    assert reason in caught.value.message
    assert caught.value.message.encode()  # it can be sent


@pytest.mark.parametrize(
    "header", ["", "-1", "+2", "1.5", "0x2", "many", "3", "9" * 5000, "\xb2", " 2"]
)
def test_invalid_json_length_is_rejected(header: str) -> None:
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length"):
        read_request(b"{}", header)


@pytest.mark.parametrize("length", [0, 10])
def test_json_length_may_not_truncate(length: int) -> None:
    with pytest.raises(InvalidRequest, match="not JSON"):
        read_request(b'{"inputs": []}', str(length))


MODEL = served_models().get(FLORENCE_ID)
IMAGE = b"\x89PNG any bytes"


def raw_bytes(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def tensor_of(name: str, datatype: str, shape: Sequence[int], data: Any) -> Any:
    """Return an input as it is read: bytes, or elements in JSON types."""
    fields: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    raw = data if isinstance(data, bytes) else b""
    if isinstance(data, bytes):
        fields["parameters"] = {"binary_data_size": len(data)}
    else:
        fields["data"] = list(data)
    return read_body(raw, inputs=[fields]).inputs[0]


def request(
    *inputs: Any, outputs: tuple[str, ...] = (), id: str = "", **parameters: Any
) -> InferJson:
    names = [{"name": name} for name in outputs]
    document = InferJson.model_validate({"inputs": [], "outputs": names, "id": id})
    return document.model_copy(update={"inputs": inputs, "parameters": parameters})


def fields(*inputs: Any, **parameters: Any) -> dict[str, object]:
    body = request_body(request(image(), *inputs, **parameters), MODEL)
    assert body.image == IMAGE
    return {name: value for name, value in body.fields.items() if name != "model"}


def image(*elements: object) -> Any:
    return tensor_of("image", "BYTES", (1,), elements or raw_bytes(IMAGE))


def scalar(name: str, datatype: str, *data: object) -> Any:
    return tensor_of(name, datatype, (1,), data[0] if isinstance(data[0], bytes) else data)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        (scalar("task", "BYTES", raw_bytes(b"ocr")), "ocr"),
        (tensor_of("task", "BYTES", (1, 1), raw_bytes(b"ocr")), "ocr"),
        (scalar("question", "BYTES", raw_bytes("Käfer?".encode())), "Käfer?"),
        (tensor_of("labels", "BYTES", (2,), raw_bytes(b"a", b"b")), ["a", "b"]),
        (tensor_of("labels", "BYTES", (1, 2), ["a", "b"]), ["a", "b"]),
        (tensor_of("labels", "BYTES", (0,), b""), []),
        (tensor_of("region", "FP32", (4,), struct.pack("<4f", 1, 2, 3.5, 4)), [1.0, 2.0, 3.5, 4.0]),
        (tensor_of("region", "INT64", (4,), [1, 2, 3, 4]), [1, 2, 3, 4]),
        (scalar("max_new_tokens", "INT32", struct.pack("<i", 5)), 5),
        (scalar("seed", "INT64", struct.pack("<q", 2**62)), 2**62),
        (scalar("temperature", "INT32", 1), 1),
        (scalar("constrained", "BOOL", b"\1"), True),
    ],
)
def test_tensor_becomes_a_field(tensor: Any, value: object) -> None:
    field = fields(tensor)[tensor.name]
    assert (field, type(field)) == (value, type(value))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (scalar("pictures", "BYTES", "a"), "unknown input 'pictures'; the inputs are image, task"),
        (
            scalar("task", "INT64", 1),
            "task is 'INT64' of shape [1]; it must be BYTES of shape [1] or [1, 1]",
        ),
        (tensor_of("task", "BYTES", (), ["a"]), "task is 'BYTES' of shape []"),
        (tensor_of("task", "BYTES", (1, 1, 1), ["a"]), "of shape [1, 1, 1]; it"),
        (
            tensor_of("labels", "BYTES", (2, 1), b""),
            "of shape [2, 1]; it must be BYTES of shape [n] or [1, n]",
        ),
        (tensor_of("labels", "BYTES", (-1,), ["a"]), "of shape [-1]; it"),
        (tensor_of("labels", "BYTES", (1001,), b""), "of shape [1001]; it"),
        (tensor_of("labels", "BYTES", (3,), ["a"]), "does not fit datatype and shape: 1 elements"),
        (tensor_of("region", "FP32", (4,), bytes(15)), "does not fit datatype and shape"),
        (scalar("seed", "INT64", b""), "does not fit datatype and shape"),
        (scalar("task", "BYTES", b"\3\0\0"), "does not fit datatype and shape"),
        (scalar("task", "BYTES", b"\4\0\0\0ocr"), "does not fit datatype and shape"),
        (scalar("task", "BYTES", raw_bytes(b"a") + b"!"), "does not fit datatype and shape"),
        (tensor_of("labels", "BYTES", (2,), raw_bytes(b"a")), "does not fit datatype and shape"),
        (scalar("task", "BYTES", raw_bytes(b"\xff")), "shape: 'utf-8' codec"),
        (image(), "image occurs twice; send it once"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_invalid_tensor_is_rejected(tensor: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fields(tensor)
    assert reason in caught.value.message
    assert (caught.value.param or "").isascii()  # it goes into a header


def test_parameters_are_fields() -> None:
    values = {"task": "ocr", "max_new_tokens": 5}
    assert fields(**values, timeout=3, triton_enable_empty_final_response=True) == values


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (request(image(), model="other"), "unknown parameter 'model'"),
        (request(image(), timeout_ms=5), "unknown parameter 'timeout_ms'"),
        (request(image(), scalar("task", "BYTES", "ocr"), task="ocr"), "task occurs twice"),
        (request(image="QUJD"), "unknown parameter 'image'"),
        (
            request(image(), outputs=("result", "boxes")),
            "output 'boxes'; the only output is result",
        ),
        (request(), "image is missing"),
    ],
)
def test_invalid_request_is_rejected(wrong: InferJson, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_body(wrong, MODEL)
    assert reason in caught.value.message


def test_image_may_be_base64_text() -> None:
    for text in ("QUJD", "data:image/png;base64,QUJD"):
        assert request_body(request(image(text)), MODEL).image == b"ABC"
    with pytest.raises(UnsupportedImage):
        request_body(request(image("?")), MODEL)


@pytest.mark.parametrize(
    ("sent_id", "id"), [("mine", "mine"), ("", "request-1"), ("not for a header", "request-1")]
)
def test_valid_request_id_is_kept(sent_id: str, id: str) -> None:
    assert request_context(request(id=sent_id), context()).request_id == id


def test_deadline_is_the_earlier_one() -> None:
    late = context(timeout_s=math.inf)
    early = context(timeout_s=1000)
    assert request_context(request(timeout=0), late).deadline_s == math.inf
    sent = request(timeout=2_000_000_000)
    late_s = request_context(sent, late).deadline_s - early.deadline_s
    assert late_s == pytest.approx(1000, abs=100)
    assert request_context(sent, early).deadline_s == early.deadline_s


@pytest.mark.parametrize("timeout", [-1, 1.5, True, "1", None, 10**400])
def test_invalid_timeout_is_rejected(timeout: object) -> None:
    with pytest.raises(InvalidRequest, match="whole number of microseconds"):
        request_context(request(timeout=timeout), context())


FIELDS = ("image", "task", "labels", "region", "seed", "temperature", "constrained", "x")
DATATYPES = ("BYTES", "FP32", "FP64", "INT32", "INT64", "BOOL", "FP16", "")
ELEMENTS = st.integers() | st.none() | st.text()
TENSORS = st.builds(
    tensor_of,
    st.sampled_from(FIELDS),
    st.sampled_from(DATATYPES),
    st.lists(st.integers(-2, 5) | st.integers(), max_size=3).map(tuple),
    st.binary(max_size=40) | st.lists(ELEMENTS, max_size=5),
)


@given(st.lists(TENSORS, max_size=3))
def test_any_tensors_are_read_or_refused(tensors: list[Any]) -> None:
    with contextlib.suppress(ServiceError):
        assert isinstance(request_body(request(*tensors), MODEL).image, bytes)

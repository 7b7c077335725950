import contextlib
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, ServiceError, UnsupportedImage
from service.open_inference.tensors import InferRequest, Tensor, request_body, request_context
from tests.support.fake_service import FLORENCE_ID, context, served_models

MODELS = served_models()
MODEL = MODELS.get(FLORENCE_ID)
IMAGE = b"\x89PNG any bytes"


def raw_bytes(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def request(
    *inputs: Tensor, outputs: tuple[str, ...] = (), id: str = "", **parameters: Any
) -> InferRequest:
    return InferRequest(id, inputs, parameters, outputs, wants_raw=True)


def fields(*inputs: Tensor, **parameters: Any) -> dict[str, object]:
    body = request_body(request(image(), *inputs, **parameters), MODEL)
    assert body.image == IMAGE
    return {name: value for name, value in body.fields.items() if name != "model"}


def image(*elements: object) -> Tensor:
    return Tensor("image", "BYTES", (1,), elements or raw_bytes(IMAGE))


def scalar(name: str, datatype: str, *data: object) -> Tensor:
    return Tensor(name, datatype, (1,), data[0] if isinstance(data[0], bytes) else data)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        (scalar("task", "BYTES", raw_bytes(b"ocr")), "ocr"),
        (Tensor("task", "BYTES", (1, 1), raw_bytes(b"ocr")), "ocr"),
        (Tensor("task", "BYTES", (1,), [b"ocr"]), "ocr"),
        (scalar("question", "BYTES", raw_bytes("Käfer?".encode())), "Käfer?"),
        (Tensor("labels", "BYTES", (2,), raw_bytes(b"a", b"b")), ["a", "b"]),
        (Tensor("labels", "BYTES", (1, 2), ["a", "b"]), ["a", "b"]),
        (Tensor("labels", "BYTES", (0,), b""), []),
        (Tensor("region", "FP32", (4,), struct.pack("<4f", 1, 2, 3.5, 4)), [1.0, 2.0, 3.5, 4.0]),
        (Tensor("region", "INT64", (4,), [1, 2, 3, 4]), [1, 2, 3, 4]),
        (scalar("max_new_tokens", "INT32", struct.pack("<i", 5)), 5),
        (scalar("seed", "INT64", struct.pack("<q", 2**62)), 2**62),
        (scalar("temperature", "INT32", 1), 1),
        (scalar("constrained", "BOOL", b"\1"), True),
    ],
)
def test_tensor_becomes_a_field(tensor: Tensor, value: object) -> None:
    field = fields(tensor)[tensor.name]
    assert (field, type(field)) == (value, type(value))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (scalar("pictures", "BYTES", "a"), "unknown input 'pictures'; the inputs are image, task"),
        (scalar("\ud800", "BYTES", "a"), r"unknown input '\ud800'"),
        (
            scalar("task", "INT64", 1),
            "task is 'INT64' of shape [1]; it must be BYTES of shape [1] or [1, 1]",
        ),
        (Tensor("task", "BYTES", (), [b"a"]), "task is 'BYTES' of shape []"),
        (Tensor("task", "BYTES", (1, 1, 1), [b"a"]), "of shape [1, 1, 1]; it"),
        (
            Tensor("labels", "BYTES", (2, 1), b""),
            "of shape [2, 1]; it must be BYTES of shape [n] or [1, n]",
        ),
        (Tensor("labels", "BYTES", (-1,), [b"a"]), "of shape [-1]; it"),
        (Tensor("labels", "BYTES", (1001,), b""), "of shape [1001]; it"),
        (Tensor("labels", "BYTES", (3,), [b"a"]), "does not fit datatype and shape: 1 elements"),
        (Tensor("region", "FP32", (4,), bytes(15)), "does not fit datatype and shape"),
        (scalar("seed", "INT64", b""), "does not fit datatype and shape"),
        (scalar("task", "BYTES", b"\3\0\0"), "does not fit datatype and shape"),
        (scalar("task", "BYTES", b"\4\0\0\0ocr"), "does not fit datatype and shape"),
        (scalar("task", "BYTES", raw_bytes(b"a") + b"!"), "does not fit datatype and shape"),
        (Tensor("labels", "BYTES", (2,), raw_bytes(b"a")), "does not fit datatype and shape"),
        (Tensor("task", "BYTES", (1,), [b"\xff"]), "shape: 'utf-8' codec"),
        (image(), "image occurs twice; send it once"),
    ],
    ids=lambda value: value.name if isinstance(value, Tensor) else None,
)
def test_invalid_tensor_is_rejected(tensor: Tensor, reason: str) -> None:
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
def test_invalid_request_is_rejected(wrong: InferRequest, reason: str) -> None:
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
ELEMENTS = st.binary(max_size=3) | st.integers() | st.none() | st.text()
TENSORS = st.builds(
    Tensor,
    st.sampled_from(FIELDS),
    st.sampled_from(DATATYPES),
    st.lists(st.integers(-2, 5) | st.integers(), max_size=3).map(tuple),
    st.binary(max_size=40) | st.lists(ELEMENTS, max_size=5),
)


@given(st.lists(TENSORS, max_size=3))
def test_any_tensors_are_read_or_refused(tensors: list[Tensor]) -> None:
    with contextlib.suppress(ServiceError):
        assert isinstance(request_body(request(*tensors), MODEL).image, bytes)

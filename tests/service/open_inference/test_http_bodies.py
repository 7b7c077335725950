import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import InvalidRequest, ServiceError
from service.open_inference.http_api import read_request
from service.open_inference.tensors import InferRequest, Tensor

TASK = {"name": "task", "datatype": "BYTES", "shape": [1]}


def read(raw: bytes = b"", **fields: Any) -> InferRequest:
    document = json.dumps({"inputs": [], **fields}).encode()
    return read_request(document + raw, str(len(document)) if raw else None)


def sized(size: object, **fields: Any) -> dict[str, Any]:
    return {**TASK, "parameters": {"binary_data_size": size}, **fields}


def test_raw_bytes_follow_in_the_order_of_the_inputs() -> None:
    inputs = [
        sized(5),
        {**TASK, "name": "detail", "data": ["short"]},
        sized(0, name="labels"),
        sized(3, name="image"),
    ]
    request = read(b"12345678", inputs=inputs, id="mine", parameters={"seed": 1})
    assert request == InferRequest(
        "mine",
        (
            Tensor("task", "BYTES", (1,), b"12345"),
            Tensor("detail", "BYTES", (1,), ["short"]),
            Tensor("labels", "BYTES", (1,), b""),
            Tensor("image", "BYTES", (1,), b"678"),
        ),
        {"seed": 1},
        (),
        wants_raw=False,
    )


@pytest.mark.parametrize(
    ("data", "elements"), [(["a", "b"], ["a", "b"]), ([["a", "b"]], ["a", "b"]), ([], [])]
)
def test_json_elements_may_be_nested_in_a_batch_of_one(
    data: list[Any], elements: list[str]
) -> None:
    (tensor,) = read(inputs=[{**TASK, "data": data}]).inputs
    assert tensor.data == elements


@pytest.mark.parametrize(
    ("of_all", "of_each", "wants_raw"),
    [
        (None, [], False),
        (True, [], True),
        (None, [True], True),
        (True, [False], False),
        (False, [True], True),
        (True, [None], True),
        (None, [None], False),
    ],
)
def test_binary_data_of_an_output_overrides_the_request(
    of_all: bool | None, of_each: list[bool | None], wants_raw: bool
) -> None:
    parameters = {} if of_all is None else {"binary_data_output": of_all}
    outputs = [
        {"name": "result"} | ({} if raw is None else {"parameters": {"binary_data": raw}})
        for raw in of_each
    ]
    request = read(parameters=parameters, outputs=outputs)
    assert (request.wants_raw, request.parameters) == (wants_raw, {})
    assert request.outputs == ("result",) * len(of_each)


@pytest.mark.parametrize(
    ("raw", "fields", "reason"),
    [
        (b"1234", {"inputs": [sized(5)]}, "binary_data_size of 5 and 4 bytes follow"),
        (b"123456", {"inputs": [sized(5)]}, "1 bytes after its last input"),
        (b"12", {"inputs": [sized(2), sized(1)]}, "binary_data_size of 1 and 0 bytes follow"),
        (b"", {"inputs": [sized(5)]}, "binary_data_size of 5 and 0 bytes follow"),
        (b"12", {"inputs": [sized(10**400)]}, "2 bytes follow"),
        (b"1", {"inputs": [sized(-1)]}, "inputs.0.parameters.binary_data_size"),
        (b"1", {"inputs": [sized("1")]}, "inputs.0.parameters.binary_data_size"),
        (b"1", {"inputs": [sized(True)]}, "inputs.0.parameters.binary_data_size"),
        (b"1", {"inputs": [sized(1, data=["a"])]}, "binary_data_size of 1 and also data"),
        (b"", {"inputs": [TASK]}, "'task' has neither data nor binary_data_size"),
        (b"", {"inputs": [{**TASK, "data": "ocr"}]}, "inputs.0.data"),
        (b"", {"inputs": [{**TASK, "data": ["a"], "shape": ["1"]}]}, "inputs.0.shape.0"),
        (b"", {"inputs": [{**TASK, "data": ["a"], "shape": [1] * 9}]}, "inputs.0.shape"),
        (
            b"",
            {"inputs": [{**TASK, "data": ["a"], "parameters": {"shared_memory_region": "x"}}]},
            "shared_memory_region",
        ),
        (
            b"",
            {"outputs": [{"name": "result", "parameters": {"classification": 2}}]},
            "outputs.0.parameters",
        ),
        (
            b"",
            {"parameters": {"binary_data_output": "yes"}},
            "binary_data_output must be true or false",
        ),
        (b"", {"inputs": None}, "inputs is None"),
        (b"", {"id": 5}, "id is 5"),
        (b"", {"x": 5}, "unknown field 'x'; the fields are id, inputs"),
        (b"", {"\ud800": 5}, "? contains a lone surrogate"),
        (b"", {"id": "\ud800"}, "id contains a lone surrogate"),
        (b"", {"inputs": [{**TASK, "data": ["a"]}] * 101}, "inputs is"),
        (b"", {"outputs": [{"name": "result"}] * 101}, "outputs is"),
        (b"", {"parameters": {f"triton_{n}": 1 for n in range(101)}}, "parameters is"),
    ],
)
def test_invalid_body_is_rejected_with_the_reason(
    raw: bytes, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(raw, **fields)
    assert reason in caught.value.message
    assert caught.value.message.encode()  # it can be sent


@pytest.mark.parametrize(
    "header", ["", "-1", "+2", "1.5", "0x2", "many", "3", "9" * 5000, "\xb2", " 2"]
)
def test_invalid_json_length_is_rejected(header: str) -> None:
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length"):
        read_request(b"{}", header)


@pytest.mark.parametrize("length", [0, 10])
def test_json_length_that_truncates_the_json_is_rejected(length: int) -> None:
    with pytest.raises(InvalidRequest, match="not JSON"):
        read_request(b'{"inputs": []}', str(length))


PIECES = st.sampled_from(
    [
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b'"inputs"',
            b'"outputs"',
            b'"name"',
            b'"task"',
            b'"shape"',
            b"[1]",
            b"1",
        ),
        *(
            b'"datatype"',
            b'"BYTES"',
            b'"data"',
            b'"parameters"',
            b'"binary_data_size"',
            b"null",
            b"NaN",
            b'"\\ud800"',
        ),
        b'{"inputs":[{"name":"task","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":4}}]}',
    ]
)


@settings(max_examples=300)
@given(
    st.one_of(st.binary(max_size=100), st.lists(PIECES, max_size=20).map(b"".join)),
    st.none() | st.integers(-1, 120).map(str) | st.text(max_size=3),
)
@example(b'{"inputs":[]}' + struct.pack("<I", 3), "13")
def test_any_bytes_are_a_request_or_a_service_error(body: bytes, header: str | None) -> None:
    with contextlib.suppress(ServiceError):
        assert isinstance(read_request(body, header), InferRequest)

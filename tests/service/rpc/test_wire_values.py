"""Values of messages are counted on the wire as they are after parsing, and bounded before it."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from service.admission.fair_queue import ClientSlots
from service.errors import InvalidRequest
from service.rpc.incoming import Incoming, num_values
from service.rpc.proto import inference_pb2 as infer
from service.rpc.proto import vision_pb2 as vision

PREDICT = vision.PredictRequest(
    image=b"\xff" * 1000,
    task="ocr",
    labels=["a", "b", ""],
    region=[1, 2, 3, 4],
    temperature=0.5,
    max_new_tokens=300,
)
INFER = infer.ModelInferRequest(
    model_name="m",
    inputs=[
        infer.ModelInferRequest.InferInputTensor(name="image", shape=[1, 2]),
        infer.ModelInferRequest.InferInputTensor(
            contents=infer.InferTensorContents(bytes_contents=[b"", b"a"])
        ),
    ],
    parameters={
        "a": infer.InferParameter(int64_param=1),
        "b": infer.InferParameter(string_param="x"),
    },
    raw_input_contents=[b"\x08" * 500],
)


def count(message: Message, maximum: int = 10_000) -> int:
    return num_values(message.SerializeToString(), message.DESCRIPTOR, maximum)


def test_fields_elements_and_entries_are_counted() -> None:
    # image, task, three labels, temperature, max_new_tokens; the packed region has one field of 32
    # bytes.
    assert count(PREDICT) == 7 + 1 + 32
    # The name; two inputs with a name, a packed shape of two, contents of two; two entries of key,
    # value and its field.
    assert count(INFER) == 1 + (2 + 1 + 1 + 2 + 1 + 2) + 2 * 4 + 1


@pytest.mark.parametrize(
    "message",
    [
        vision.PredictRequest(labels=[""] * 20_000),
        vision.PredictRequest(region=[0.0] * 20_000),
        infer.ModelInferRequest(inputs=[infer.ModelInferRequest.InferInputTensor()] * 20_000),
        infer.ModelInferRequest(
            parameters={str(number): infer.InferParameter() for number in range(20_000)}
        ),
        infer.ModelInferRequest(
            inputs=[infer.ModelInferRequest.InferInputTensor(shape=[1] * 20_000)]
        ),
    ],
)
def test_a_message_of_very_many_values_is_refused_before_it_is_parsed(message: Message) -> None:
    async def messages() -> AsyncIterator[bytes]:
        yield message.SerializeToString()

    class NeverParsed:
        DESCRIPTOR: Any = message.DESCRIPTOR

        @staticmethod
        def FromString(_data: bytes) -> Message:
            raise AssertionError("the message is parsed")

    message_class: Any = NeverParsed
    incoming = Incoming(messages(), message_class, ClientSlots(1, 1), "ipv4:127.0.0.1:1")
    with pytest.raises(InvalidRequest, match="more than 10000 fields, elements and entries"):
        asyncio.run(incoming.read(time.monotonic() + 60, lambda _num_bytes: None))


@given(st.binary(max_size=300))
def test_any_bytes_are_counted_and_those_of_a_message_not_below_its_fields(data: bytes) -> None:
    found = num_values(data, infer.ModelInferRequest.DESCRIPTOR, 10_000)
    try:
        message = infer.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    assert found >= len(message.ListFields())
    assert found >= len(message.inputs) + len(message.parameters)

"""The gRPC server over fake runners: keys, and the metadata of errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from service.admission.api_keys import ApiKeys
from service.errors import Unauthorized
from service.inference.core import Core
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import api_keys
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ID, PNG, make_core
from tests.support.grpc_channel import grpc_channel
from tests.support.trace_collector import TRACE_ID, TRACEPARENT
from wire.runner_messages import Failed

KEY = "secret"
OCR = pb.PredictRequest(image=PNG, task="ocr")


@asynccontextmanager
async def vision(core: Core, api_keys: ApiKeys) -> AsyncIterator[Any]:
    async with grpc_channel(core, api_keys) as channel:
        yield VisionStub(channel)


def error(
    core: Core | None = None, keys: ApiKeys | None = None, authorization: str | None = None
) -> grpc.aio.AioRpcError:
    """Return the error of a call, which is the same for Predict and PredictStream."""

    async def ask() -> list[grpc.aio.AioRpcError]:
        metadata = [("x-request-id", "mine"), ("traceparent", TRACEPARENT)]
        if authorization:
            metadata.append(("authorization", authorization))
        async with vision(core or make_core(), keys or ApiKeys(None)) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as whole:
                await stub.Predict(OCR, metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as streamed:
                [_ async for _ in stub.PredictStream(OCR, metadata=metadata)]
            return [whole.value, streamed.value]

    whole, streamed = asyncio.run(ask())
    assert (whole.code(), whole.details()) == (streamed.code(), streamed.details())
    assert trailing(whole) == trailing(streamed)
    return whole


def trailing(caught: grpc.aio.AioRpcError) -> dict[str, str]:
    return {str(name): str(value) for name, value in caught.trailing_metadata()}


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", KEY])
def test_call_requires_an_accepted_key(authorization: str | None) -> None:
    keys = api_keys(KEY)
    refused = error(keys=keys, authorization=authorization)
    assert refused.code() == grpc.StatusCode.UNAUTHENTICATED
    assert trailing(refused)["diptych-code"] == "unauthorized"


def test_wrong_keys_are_counted_by_the_address_that_rest_has_too() -> None:
    keys = api_keys(KEY)
    for guess in range(10):
        with pytest.raises(Unauthorized):
            keys.check(f"Bearer {guess}", "127.0.0.1")
    refused = error(keys=keys, authorization="Bearer wrong")
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1 <= int(trailing(refused)["retry-after"]) <= 6


def test_call_with_an_accepted_key_is_answered() -> None:
    async def ask() -> pb.Answer:
        async with vision(make_core(), api_keys(KEY)) as stub:
            answer: pb.Answer = await stub.Predict(
                OCR, metadata=[("authorization", f"Bearer {KEY}")]
            )
            return answer

    assert asyncio.run(ask()).text == "HELLO"


def test_overload_has_retry_after() -> None:
    refused = error(make_core(max_pending=0))
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing(refused) == {
        "x-request-id": "mine",
        "x-trace-id": TRACE_ID,
        "diptych-code": "overloaded",
        "retry-after": "1",
    }


def test_failed_sequence_has_its_code() -> None:
    failed = Failed(code="non_finite_logits", message="NaN")
    decoder = FakeDecoder({"What is the text in the image?": failed})
    assert error(make_core(decoders={FLORENCE_ID: decoder})).code() == grpc.StatusCode.INTERNAL


def test_internal_error_reveals_no_cause() -> None:
    broken = error(
        make_core(decoders={FLORENCE_ID: FakeDecoder({}, failure=ValueError("a secret"))})
    )
    assert broken.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(broken.details())

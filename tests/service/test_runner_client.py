import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from runners.messages import Array, EncodedImage, EncodeOutcome, Failed, ImageToEncode, SequenceSpec
from service.errors import DeadlineExceeded, InternalError, NotReady, Overloaded, ServiceError
from service.one_runner import OneRunner
from service.runner_apis import ApiT, DecoderApi, EncoderApi, ResultT, RunnerLink
from service.runner_client import RunnerClient
from service.shared_memory import SharedMemory
from service.vision_cache import VisionCache
from tests.support.catalog import FLORENCE
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeDecoder, FakeEncoder, alone, fake_features, refusal
from tests.support.fake_service import INPUT_SIZE_WH, MEMORY, served
from tests.support.memory_use import PAGE_BYTES, allocated

MANIFEST = served(FLORENCE).manifest
SPEC = SequenceSpec(segments=[("what is it?", True)], timeout_s=1)


def client(
    encoder: FakeEncoder, decoder: FakeDecoder, max_bytes: int = 0, memory: SharedMemory | None = MEMORY
) -> RunnerClient:
    return RunnerClient(MANIFEST, alone(encoder, memory), alone(decoder, memory), VisionCache(max_bytes, 8))


def pixels(seed: int = 0) -> NDArray[np.uint8]:
    width, height = INPUT_SIZE_WH
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def writer(shares_memory: bool = True) -> FakeDecoder:
    return FakeDecoder({"what is it?": "a circle"}, shares_memory=shares_memory)


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [
        (FakeEncoder(), FakeDecoder({}), True),
        (FakeEncoder(is_up=False), FakeDecoder({}), False),
        (FakeEncoder(), FakeDecoder({}, is_up=False), False),
        (FakeEncoder(failure=aiohttp.ClientConnectionError("refused")), FakeDecoder({}), False),
        (FakeEncoder(), FakeDecoder({}, failure=TimeoutError("late")), False),
    ],
)
def test_model_is_ready_when_both_runners_answer(encoder: FakeEncoder, decoder: FakeDecoder, expected: bool) -> None:
    assert run(client(encoder, decoder).is_ready()) is expected


@pytest.mark.parametrize("max_bytes", [0, 1_000_000], ids=["not kept", "kept"])
@pytest.mark.parametrize(
    ("encoder_shares", "decoder_shares", "has_memory", "kind"),
    [
        (True, True, True, "shared"),
        (True, False, True, "array"),
        (False, True, True, "array"),
        (False, False, True, "array"),
        (True, True, False, "array"),
    ],
)
def test_features_arrive_bit_equal_whichever_runner_shares_memory(
    encoder_shares: bool, decoder_shares: bool, has_memory: bool, kind: str, max_bytes: int
) -> None:
    async def ask() -> None:
        for _ in range(2):
            encoded = await runners.encode(pixels())
            await runners.write(encoded.image_features, [SPEC])

    encoder, decoder = FakeEncoder(shares_memory=encoder_shares), writer(shares_memory=decoder_shares)
    runners = client(encoder, decoder, max_bytes, MEMORY if has_memory else None)
    run(ask())
    assert decoder.kinds == [kind] * 2
    assert all(np.array_equal(features, fake_features(pixels())) for features in decoder.image_features)


def test_a_runner_is_asked_once_whether_it_shares_memory() -> None:
    async def ask() -> None:
        for seed in range(3):
            await runners.encode(pixels(seed))

    encoder = FakeEncoder()
    runners = client(encoder, FakeDecoder({}))
    run(ask())
    assert (len(encoder.shapes), encoder.num_asked) == (3, 1)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (refusal(409), NotReady),
        (refusal(503), Overloaded),
        (refusal(500), InternalError),
        (aiohttp.ConnectionTimeoutError(), NotReady),
        (aiohttp.ServerDisconnectedError(), NotReady),
        (TimeoutError(), DeadlineExceeded),
    ],
    ids=repr,
)
def test_what_a_call_ends_with_is_an_error_of_the_service(failure: Exception, expected: type[ServiceError]) -> None:
    with pytest.raises(expected, match="the encoder of florence-2-mini"):
        run(client(FakeEncoder(failure=failure), writer()).encode(pixels()))


def test_features_of_another_model_are_refused() -> None:
    class Another(FakeEncoder):
        async def encode(self, image: ImageToEncode) -> EncodeOutcome:  # noqa: ARG002  # the interface has it
            return EncodedImage(image_features=Array.of(np.zeros((2, 3), dtype=np.float32)), encode_s=0.0)

    with pytest.raises(InternalError, match="features of another model"):
        run(client(Another(shares_memory=False), writer()).encode(pixels()))


def test_an_image_that_failed_alone_is_an_error_and_is_not_kept() -> None:
    async def ask() -> None:
        with pytest.raises(InternalError, match="not to be had"):
            await runners.encode(pixels())
        encoder.failed = None
        assert (await runners.encode(pixels())).outcome == "miss"

    encoder = FakeEncoder(failed=Failed(code="internal", message="the pixels are not to be had"))
    runners = client(encoder, FakeDecoder({}), 1_000_000)
    run(ask())


def test_features_in_use_outlast_their_place_in_the_cache() -> None:
    async def ask() -> None:
        decoder.released = asyncio.Event()
        encoded = await runners.encode(pixels(1))
        writing = asyncio.ensure_future(runners.write(encoded.image_features, [SPEC]))
        del encoded
        await runners.encode(pixels(2))  # drops the first from a cache that has room for one
        await until(lambda: allocated(memory) == 2 * PAGE_BYTES)  # the thread that wrote the pixels lets go of them
        decoder.released.set()
        await writing
        assert allocated(memory) == PAGE_BYTES

    memory, decoder = SharedMemory(), writer()
    runners = client(FakeEncoder(), decoder, PAGE_BYTES, memory)
    run(ask())


def test_a_call_that_is_cancelled_is_cancelled_at_the_decoder() -> None:
    async def ask() -> None:
        decoder.released = asyncio.Event()
        encoded = await runners.encode(pixels())
        writing = asyncio.ensure_future(runners.write(encoded.image_features, [SPEC]))
        await until(lambda: decoder.specs)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

    decoder = writer()
    runners = client(FakeEncoder(), decoder)
    run(ask())
    assert decoder.num_cancelled == 1


class Noting(OneRunner[ApiT]):
    """Notes how much work it is asked for, and by which key."""

    asked: list[tuple[int, bytes | None]]

    async def ask(
        self, call: Callable[[RunnerLink[ApiT]], Awaitable[ResultT]], cost: int, key: bytes | None = None
    ) -> ResultT:
        self.asked = [*getattr(self, "asked", []), (cost, key)]
        return await super().ask(call, cost, key)


def test_work_is_an_image_by_its_hash_and_a_slot_for_each_beam() -> None:
    async def ask() -> None:
        for seed in (0, 0, 1):
            encoded = await runners.encode(pixels(seed))
        beams = SPEC.model_copy(update={"num_beams": 3})
        await runners.write(encoded.image_features, [SPEC, beams])

    encoder = Noting[EncoderApi](RunnerLink("encoder", FakeEncoder(), None))
    decoder = Noting[DecoderApi](RunnerLink("decoder", writer(), None))
    runners = RunnerClient(MANIFEST, encoder, decoder, VisionCache(0, 8))
    run(ask())
    (first, second, third), keys = encoder.asked, {key for _, key in encoder.asked}
    assert first == second != third
    assert (first[0], len(keys), None in keys) == (1, 2, False)
    assert decoder.asked == [(1 + 3, None)]

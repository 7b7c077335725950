import asyncio
import dataclasses
import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imaging.files import ImageLimits
from service.errors import DeadlineExceeded, InternalError, NotReady, ServiceError
from service.images.decoding import ImageDecoder, LazyImage
from service.runner_client.runner_client import RunnerClient, WrittenAnswers, written_answers
from tests.support.catalog import FLORENCE
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeChannel, FakeDecoder, FakeEncoder, fake_features
from tests.support.fake_service import INPUT_SIZE_WH, encoded, served
from wire.runner_channel import (
    CallFailed,
    CallTimedOut,
    RunnerCall,
    RunnerUnavailable,
    RunnerUnreachable,
)
from wire.runner_messages import Failed, FoundFeatures, Outcomes, SequenceSpec, Written

MANIFEST = served(FLORENCE).manifest
SPEC = SequenceSpec(segments=[("what is it?", True)], timeout_s=1)


def picture(seed: int = 0, size_wh: tuple[int, int] = INPUT_SIZE_WH) -> bytes:
    width, height = size_wh
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


async def opened(data: bytes) -> LazyImage:
    image = LazyImage(data, ImageDecoder(ImageLimits(1_000_000), 2), "test")
    await image.open()
    return image


def writer() -> FakeDecoder:
    return FakeDecoder({"what is it?": "a circle"})


async def write(
    client: RunnerClient, seed: int = 0, specs: Sequence[SequenceSpec] = (SPEC,)
) -> WrittenAnswers:
    return await client.write(MANIFEST, await opened(picture(seed)), specs)


def test_pixels_are_sent_only_if_the_runner_has_no_features() -> None:
    async def outcomes() -> list[str]:
        return [(await write(client, seed)).features.outcome for seed in (0, 0, 1)]

    encoder = FakeEncoder()
    decoder = writer()
    channel = FakeChannel(encoder, decoder)
    client = RunnerClient(MANIFEST.model_id, channel)
    assert run(outcomes()) == ["miss", "hit", "miss"]
    assert [call.pixels is not None for call in channel.calls] == [True, False, True]
    keys = [call.image_key for call in channel.calls]
    assert keys[0] == keys[1] != keys[2]
    assert encoder.shapes == [(INPUT_SIZE_WH[1], INPUT_SIZE_WH[0], 3)] * 2
    first, second = decoder.image_features[:2]
    assert np.array_equal(first, second)
    assert np.array_equal(first, fake_features(np.asarray(Image.open(io.BytesIO(picture())))))


def test_pixels_are_sent_again_if_the_runner_has_forgotten_them() -> None:
    async def outcomes() -> list[str]:
        return [(await write(client)).features.outcome for _ in range(2)]

    channel = FakeChannel(FakeEncoder(), writer(), max_cache_bytes=0)
    client = RunnerClient(MANIFEST.model_id, channel)
    assert run(outcomes()) == ["miss", "miss"]
    assert [call.pixels is not None for call in channel.calls] == [True, False, True]


def test_an_image_that_takes_a_while_to_decode_is_asked_for_first() -> None:
    """Another gateway may have sent it."""

    async def scenario() -> None:
        image = await opened(picture(size_wh=(800, 600)))
        await client.write(MANIFEST, image, [SPEC])

    channel = FakeChannel(FakeEncoder(), writer())
    client = RunnerClient(MANIFEST.model_id, channel)
    run(scenario())
    assert [call.pixels is not None for call in channel.calls] == [False, True]


def test_cache_hit_decodes_nothing() -> None:
    async def scenario() -> None:
        await write(client)
        answers = await write(client)
        assert answers.features.outcome == "hit"
        assert answers.preprocess_s == 0

    client = RunnerClient(MANIFEST.model_id, FakeChannel(FakeEncoder(), writer()))
    run(scenario())


def test_the_time_of_an_answer_is_that_of_its_stages_and_the_rest_is_queueing() -> None:
    def written(prefill_s: float, decode_s: float) -> Written:
        return Written(
            text="a cat",
            token_ends=[5],
            logprobs=[-0.5],
            finish_reason="stop",
            num_prompt_tokens=3,
            num_generated_tokens=2,
            queue_s=0.0,
            prefill_s=prefill_s,
            decode_s=decode_s,
        )

    features = FoundFeatures(outcome="miss", encode_s=2.0, queue_s=4.0)
    answered = Outcomes(features=features, outcomes=[written(1.0, 1.0), written(8.0, 16.0)])
    answers = written_answers(answered, preprocess_s=32.0, elapsed_s=100.0)
    assert (answers.prefill_s, answers.decode_s, answers.queue_s) == (8.0, 16.0, 38.0)
    assert (answers.num_prompt_tokens, answers.num_generated_tokens) == (6, 4)
    assert written_answers(answered, preprocess_s=32.0, elapsed_s=50.0).queue_s == 0


def test_preprocessing_is_a_part_of_the_elapsed_time() -> None:
    async def scenario() -> None:
        start_s = time.monotonic()
        answers = await write(client)
        assert 0 < answers.preprocess_s < time.monotonic() - start_s

    client = RunnerClient(MANIFEST.model_id, FakeChannel(FakeEncoder(), writer()))
    run(scenario())


def test_image_key_depends_on_file_build_and_resolution() -> None:
    async def key(data: bytes, **changed: Any) -> str:
        return (await opened(data)).key(dataclasses.replace(MANIFEST, **changed))

    keys = [
        run(key(picture())),
        run(key(picture(1))),
        run(key(picture(), build_key="1" * 64)),
        run(key(picture(), image_size_wh=(96, 192))),
    ]
    assert len(set(keys)) == 4
    assert run(key(picture())) == keys[0]


def test_image_key_of_an_adapter_is_that_of_its_base_unless_it_has_an_encoder() -> None:
    async def key(**changed: Any) -> str:
        return (await opened(picture())).key(dataclasses.replace(MANIFEST, **changed))

    adapter = {
        "build_key": "a" * 64,
        "adapter_of": MANIFEST.model_id,
        "base_build_key": MANIFEST.build_key,
    }
    base = run(key())
    assert run(key(**adapter, files={"adapter.safetensors": "0"})) == base
    own = run(key(**adapter, files={"adapter.safetensors": "0", "vision_encoder.onnx": "0"}))
    assert own != base
    assert own == run(key(build_key="a" * 64))


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (RunnerUnavailable("status 503"), NotReady),
        (RunnerUnreachable("gone"), NotReady),
        (CallTimedOut("late"), DeadlineExceeded),
        (CallFailed("status 500"), InternalError),
    ],
    ids=repr,
)
def test_failure_of_a_call_is_a_service_error(
    failure: Exception, expected: type[ServiceError]
) -> None:
    client = RunnerClient(MANIFEST.model_id, FakeChannel(FakeEncoder(failure=failure), writer()))
    with pytest.raises(expected, match="runner of florence-2-mini"):
        run(write(client))


def test_broken_call_is_repeated_once() -> None:
    class BreaksOnce(FakeChannel):
        num_broken = 0

        async def write(self, call: RunnerCall) -> Outcomes:
            outcomes = await super().write(call)
            if call.pixels is not None and not self.num_broken:
                self.num_broken += 1
                raise RunnerUnreachable
            return outcomes

    channel = BreaksOnce(FakeEncoder(), writer())
    answers = run(write(RunnerClient(MANIFEST.model_id, channel)))
    assert answers.sequences[0].text == "a circle"
    assert channel.num_broken == 1


def test_image_that_failed_to_encode_is_not_cached() -> None:
    async def scenario() -> None:
        with pytest.raises(InternalError, match="the vision encoder failed"):
            await write(client)
        encoder.failed = None
        assert (await write(client)).features.outcome == "miss"

    encoder = FakeEncoder(failed=Failed(code="internal", message="the vision encoder failed"))
    client = RunnerClient(MANIFEST.model_id, FakeChannel(encoder, writer()))
    run(scenario())


def test_cancelled_call_is_cancelled_at_the_runner() -> None:
    async def scenario() -> None:
        decoder.released = asyncio.Event()
        writing = asyncio.ensure_future(write(client))
        await until(lambda: decoder.specs)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

    decoder = writer()
    client = RunnerClient(MANIFEST.model_id, FakeChannel(FakeEncoder(), decoder))
    run(scenario())
    assert decoder.num_cancelled == 1


def test_a_streamed_call_sends_its_text_and_has_the_features_of_its_image() -> None:
    async def answers() -> WrittenAnswers:
        return await client.write(MANIFEST, await opened(picture()), [SPEC], sent.append)

    sent: list[str] = []
    client = RunnerClient(MANIFEST.model_id, FakeChannel(FakeEncoder(), writer()))
    streamed = run(answers())
    assert streamed.features.outcome == "miss"
    assert "".join(sent) == streamed.sequences[0].text


def test_a_closed_client_has_closed_its_channel() -> None:
    channel = FakeChannel(FakeEncoder(), writer())
    run(RunnerClient(MANIFEST.model_id, channel).close())
    assert channel.is_closed

"""Simultaneous questions of a request to one runner are one call, with the same answers."""

import asyncio
import dataclasses
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imaging.files import ImageLimits
from service.errors import DeadlineExceeded, InternalError, NotReady, ServiceError
from service.images.decoding import ImageDecoder, LazyImage
from service.inference.runner_calls import (
    CallBegun,
    CallEvent,
    JoinedCalls,
    RunnerClient,
    StreamedText,
    WrittenAnswers,
    written_answers,
)
from service.inference.served_models import ServedModel
from tests.support.catalog import FLORENCE
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeChannel, FakeDecoder, FakeEncoder, fake_features
from tests.support.fake_service import INPUT_SIZE_WH, PNG, encoded, served
from wire.runner_channel import (
    CallFailed,
    CallTimedOut,
    FeaturesMissing,
    RunnerCall,
    RunnerUnavailable,
    RunnerUnreachable,
)
from wire.runner_messages import (
    Failed,
    FoundFeatures,
    Outcome,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    Written,
)

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


def test_pixels_only_without_features() -> None:
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


def test_forgotten_pixels_are_sent_again() -> None:
    async def outcomes() -> list[str]:
        return [(await write(client)).features.outcome for _ in range(2)]

    channel = FakeChannel(FakeEncoder(), writer(), max_cache_bytes=0)
    client = RunnerClient(MANIFEST.model_id, channel)
    assert run(outcomes()) == ["miss", "miss"]
    assert [call.pixels is not None for call in channel.calls] == [True, False, True]


def test_slow_image_is_asked_for_first() -> None:
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


def test_times_of_an_answer() -> None:
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
    outcomes: dict[int, Outcome] = {1: written(1.0, 1.0), 0: written(8.0, 16.0)}
    found = CallBegun(features, preprocess_s=32.0)
    answers = written_answers(outcomes, found, elapsed_s=100.0)
    assert (answers.prefill_s, answers.decode_s, answers.queue_s) == (8.0, 16.0, 38.0)
    assert [sequence.prefill_s for sequence in answers.sequences] == [8.0, 1.0]
    assert written_answers(outcomes, found, elapsed_s=50.0).queue_s == 0


def test_preprocessing_is_elapsed_time() -> None:
    async def scenario() -> None:
        start_s = time.monotonic()
        answers = await write(client)
        assert 0 < answers.preprocess_s < time.monotonic() - start_s

    client = RunnerClient(MANIFEST.model_id, FakeChannel(FakeEncoder(), writer()))
    run(scenario())


def test_image_key() -> None:
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


def test_image_key_of_an_adapter() -> None:
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
def test_failed_call_is_a_service_error(failure: Exception, expected: type[ServiceError]) -> None:
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


def test_failed_encoding_is_not_cached() -> None:
    async def scenario() -> None:
        with pytest.raises(InternalError, match="the vision encoder failed"):
            await write(client)
        encoder.failed = None
        assert (await write(client)).features.outcome == "miss"

    encoder = FakeEncoder(failed=Failed(code="internal", message="the vision encoder failed"))
    client = RunnerClient(MANIFEST.model_id, FakeChannel(encoder, writer()))
    run(scenario())


def test_cancelled_call_ends_at_the_runner() -> None:
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


def test_streamed_call() -> None:
    async def answers() -> WrittenAnswers:
        return await client.write(MANIFEST, await opened(picture()), [SPEC], sent.append)

    sent: list[str] = []
    client = RunnerClient(MANIFEST.model_id, FakeChannel(FakeEncoder(), writer()))
    streamed = run(answers())
    assert streamed.features.outcome == "miss"
    assert "".join(sent) == streamed.sequences[0].text


def test_close_closes_the_channel() -> None:
    channel = FakeChannel(FakeEncoder(), writer())
    run(RunnerClient(MANIFEST.model_id, channel).close())
    assert channel.is_closed


BEGIN = CallBegun(FoundFeatures(outcome="hit"), 0.0)


def piece(index: int, text: str) -> TextPiece:
    return TextPiece(index=index, text=text)


def end(index: int, text: str) -> SequenceEnd:
    return SequenceEnd(index=index, outcome=sequence(text))


def sequence(text: str) -> Written:
    return Written(
        text=text,
        token_ends=[],
        logprobs=[],
        finish_reason="stop",
        num_prompt_tokens=1,
        num_generated_tokens=1,
        queue_s=0,
        prefill_s=0,
        decode_s=0,
    )


def streamed(events: Sequence[CallEvent], num_sequences: int = 2) -> list[str]:
    sent: list[str] = []
    text = StreamedText(MANIFEST.model_id, num_sequences, sent.append)
    for event in events:
        text.receive(event)
    return sent


@pytest.mark.parametrize(
    ("events", "sent"),
    [
        ([piece(0, "a"), piece(0, "b"), end(0, "ab"), end(1, "")], ["a", "b", "\n"]),
        ([piece(1, "x"), piece(0, "a"), end(1, "xy"), end(0, "a")], ["a", "\n", "xy"]),
        ([end(0, "whole"), piece(1, "x"), end(1, "x and rest")], ["whole", "\n", "x", " and rest"]),
        ([end(0, ""), end(1, "")], ["\n"]),
        ([piece(0, "a")], ["a"]),
    ],
)
def test_streamed_text_is_in_order(events: list[CallEvent], sent: list[str]) -> None:
    assert streamed([BEGIN, *events]) == sent


@pytest.mark.parametrize(
    ("first", "repeated", "text"),
    [
        ([piece(0, "ab")], [piece(0, "a"), piece(0, "bc"), end(0, "abc"), end(1, "x")], "abc\nx"),
        ([piece(0, "ab")], [piece(0, "abc"), end(0, "abc"), end(1, "x")], "abc\nx"),
        ([end(0, "a"), piece(1, "x")], [end(1, "xy")], "a\nxy"),
        ([end(0, ""), piece(1, "x")], [end(1, "x")], "\nx"),
        # text received but not sent may differ
        ([piece(1, "x")], [end(0, "a"), end(1, "z")], "a\nz"),
    ],
)
def test_repeated_text_is_not_sent_twice(
    first: list[CallEvent], repeated: list[CallEvent], text: str
) -> None:
    assert "".join(streamed([BEGIN, *first, BEGIN, *repeated])) == text


@pytest.mark.parametrize("event", [piece(0, "b"), piece(0, "ac"), end(0, "a")])
@pytest.mark.parametrize("num_sequences", [1, 2])
def test_repeated_stream_must_not_diverge(event: CallEvent, num_sequences: int) -> None:
    with pytest.raises(NotReady, match="a sampled answer cannot be resumed"):
        streamed([BEGIN, piece(0, "ab"), BEGIN, event], num_sequences)


MODEL: ServedModel = served(FLORENCE)
ANSWERS: dict[str, str | Failed] = {
    "a": "one",
    "b": "two",
    "c": "three",
    "bad": Failed(code="overloaded", message="full"),
}


class BreakingChannel(FakeChannel):
    """Breaks the first calls after an outcome."""

    num_broken = 0

    async def stream(self, call: RunnerCall):  # type: ignore[no-untyped-def]
        events = super().stream(call)
        num_ends = 0
        async for event in events:
            yield event
            num_ends += event.kind == "end"
            if num_ends == 1 and self.num_broken:
                self.num_broken -= 1
                raise RunnerUnreachable("killed")


def spec(text: str) -> SequenceSpec:
    return SequenceSpec(segments=[(text, False)], timeout_s=60)


async def opened_joined_calls() -> LazyImage:
    image = LazyImage(PNG, ImageDecoder(ImageLimits(1_000_000), 2), "a")
    await image.open()
    return image


def run_joined(
    scenario: Callable[[JoinedCalls, FakeChannel, LazyImage], Awaitable[None]],
    decoder: FakeDecoder | None = None,
    num_broken: int = 0,
) -> None:
    async def whole() -> None:
        channel = BreakingChannel(FakeEncoder(), decoder or FakeDecoder(ANSWERS))
        channel.num_broken = num_broken
        joined = JoinedCalls(RunnerClient(MODEL.id, channel))
        try:
            await scenario(joined, channel, await opened_joined_calls())
        finally:
            await JoinedCalls.close([joined])

    asyncio.run(whole())


async def written(joined: JoinedCalls, image: LazyImage, *texts: str) -> list[str | ServiceError]:
    """Return what each of the callers gets that ask at the same time."""

    async def ask(text: str) -> str | ServiceError:
        try:
            answers = await joined.write(MODEL.manifest, image, list(map(spec, text.split())))
        except ServiceError as error:
            return error
        return answers.text

    return list(await asyncio.gather(*map(ask, texts)))


def with_pixels(calls: Sequence[RunnerCall]) -> list[int]:
    """Return the number of sequences of each call with pixels."""
    return [len(call.sequences) for call in calls if call.pixels is not None]


def test_simultaneous_callers_share_a_call() -> None:
    async def scenario(joined: JoinedCalls, channel: FakeChannel, image: LazyImage) -> None:
        assert await written(joined, image, "a", "b c", "b") == ["one", "two\nthree", "two"]
        assert with_pixels(channel.calls) == [4]
        assert await written(joined, image, "c", "a") == ["three", "one"]
        assert with_pixels(channel.calls) == [4]
        assert len(channel.calls[-1].sequences) == 2

    run_joined(scenario)


def test_later_callers_wait_for_features() -> None:
    encoder_released = asyncio.Event()

    async def scenario(joined: JoinedCalls, channel: FakeChannel, image: LazyImage) -> None:
        first = asyncio.create_task(written(joined, image, "a"))
        while not channel.calls:
            await asyncio.sleep(0)
        second = asyncio.create_task(written(joined, image, "b"))
        third = asyncio.create_task(written(joined, image, "c"))
        encoder_released.set()
        assert [*await first, *await second, *await third] == ["one", "two", "three"]
        assert with_pixels(channel.calls) == [1]

    run_joined(scenario)


def test_failed_sequence_fails_its_caller() -> None:
    async def scenario(joined: JoinedCalls, _: FakeChannel, image: LazyImage) -> None:
        one, failed, both = await written(joined, image, "a", "bad", "a bad")
        assert one == "one"
        assert isinstance(failed, ServiceError)
        assert isinstance(both, ServiceError)
        assert (failed.code, both.code) == ("overloaded", "overloaded")

    run_joined(scenario)


def test_unfinished_sequences_are_repeated() -> None:
    decoder = FakeDecoder(ANSWERS)

    async def scenario(joined: JoinedCalls, channel: FakeChannel, image: LazyImage) -> None:
        assert await written(joined, image, "a", "b", "c") == ["one", "two", "three"]
        sequences = [len(call.sequences) for call in channel.calls]
        assert sequences[-2:] == [3, 2]

    run_joined(scenario, decoder, num_broken=1)


def test_second_break_fails_the_rest() -> None:
    async def scenario(joined: JoinedCalls, _: FakeChannel, image: LazyImage) -> None:
        outcomes = await written(joined, image, "a", "b", "c")
        failures = [each for each in outcomes if isinstance(each, NotReady)]
        assert len(failures) == 1  # each of the two calls ended one sequence

    run_joined(scenario, num_broken=2)


def test_close_ends_sequences() -> None:
    async def whole() -> None:
        decoder = FakeDecoder(ANSWERS, released=asyncio.Event())
        joined = JoinedCalls(RunnerClient(MODEL.id, FakeChannel(FakeEncoder(), decoder)))
        asking = asyncio.create_task(written(joined, await opened_joined_calls(), "a", "b"))
        while not decoder.num_waiting:
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await JoinedCalls.close([joined])
        assert (decoder.num_waiting, decoder.num_cancelled) == (0, 1)

    asyncio.run(whole())


def test_a_defect_reaches_every_caller() -> None:
    async def scenario(joined: JoinedCalls, _: FakeChannel, image: LazyImage) -> None:
        with pytest.raises(ZeroDivisionError):
            await joined.write(MODEL.manifest, image, [spec("a")])

    run_joined(scenario, FakeDecoder(ANSWERS, failure=ZeroDivisionError()))


def asked_once(channel: FakeChannel) -> None:
    async def whole() -> None:
        joined = JoinedCalls(RunnerClient(MODEL.id, channel))
        await joined.write(MODEL.manifest, await opened_joined_calls(), [spec("a")])

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_short_stream_is_an_error() -> None:
    class ShortChannel(FakeChannel):
        """Ends without outcomes."""

        async def stream(self, call: RunnerCall):  # type: ignore[no-untyped-def]
            async for event in super().stream(call):
                yield event
                return

    with pytest.raises(InternalError, match="before the answer was complete"):
        asked_once(ShortChannel(FakeEncoder(), FakeDecoder(ANSWERS)))


def test_forgetful_runner_is_an_error() -> None:
    class ForgettingChannel(FakeChannel):
        """Has no features after any number of calls."""

        async def stream(self, call: RunnerCall):  # type: ignore[no-untyped-def]
            for _ in call.sequences:
                raise FeaturesMissing
            yield

    with pytest.raises(NotReady):
        asked_once(ForgettingChannel(FakeEncoder(), FakeDecoder(ANSWERS)))

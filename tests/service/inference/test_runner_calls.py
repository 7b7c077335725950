"""Calls send pixels only where they are needed, and are repeated where nothing is sent twice."""

import asyncio
import dataclasses
import io
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imaging.files import ImageLimits
from service.errors import DeadlineExceeded, NotReady, RunnerFailed, ServiceError
from service.images.decoding import ImageDecoder, LazyImage
from service.inference import runner_calls
from service.inference.runner_calls import (
    CallBegun,
    CallEvent,
    Isolation,
    RunnerClient,
    StreamedText,
    WrittenAnswers,
)
from tests.support.catalog import FLORENCE
from tests.support.fake_runners import FakeChannel, FakeDecoder, FakeEncoder, fake_features
from tests.support.fake_service import INPUT_SIZE_WH, encoded, run, served
from wire.runner_channel import (
    CallBroken,
    CallTimedOut,
    ChannelError,
    FeaturesMissing,
    RunnerCall,
    RunnerUnreachable,
)
from wire.runner_messages import (
    FoundFeatures,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WritingEvent,
    Written,
)

MANIFEST = served(FLORENCE).manifest
SPEC = SequenceSpec(segments=[("what is it?", True)], timeout_s=1)


def picture(seed: int = 0, size_wh: tuple[int, int] = INPUT_SIZE_WH) -> bytes:
    width, height = size_wh
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


async def opened(data: bytes, client: str = "test") -> LazyImage:
    image = LazyImage(data, ImageDecoder(ImageLimits(1_000_000), 2), client)
    await image.open()
    return image


def writer() -> FakeDecoder:
    return FakeDecoder({"what is it?": "a circle"})


async def write(
    client: RunnerClient,
    seed: int = 0,
    specs: Sequence[SequenceSpec] = (SPEC,),
    on_text: Callable[[str], None] | None = None,
) -> WrittenAnswers:
    return await client.write(MANIFEST, await opened(picture(seed)), specs, on_text)


def streamed_by(channel: FakeChannel, num_sequences: int = 1) -> WrittenAnswers:
    client = RunnerClient(MANIFEST.model_id, channel)
    texts: list[str] = []
    writing = write(client, specs=[SPEC] * num_sequences, on_text=texts.append)
    answers = run(asyncio.wait_for(writing, 60))
    assert "".join(texts) == answers.text
    return answers


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


async def test_slow_image_is_asked_for_first() -> None:
    """Another gateway may have sent it."""

    channel = FakeChannel(FakeEncoder(), writer())
    client = RunnerClient(MANIFEST.model_id, channel)
    image = await opened(picture(size_wh=(800, 600)))
    await client.write(MANIFEST, image, [SPEC])
    assert [call.pixels is not None for call in channel.calls] == [False, True]


def test_image_key() -> None:
    async def key(data: bytes = picture(), /, **changed: Any) -> str:
        return (await opened(data)).key(dataclasses.replace(MANIFEST, **changed))

    base = run(key())
    others = [key(picture(1)), key(build_key="1" * 64), key(image_size_wh=(96, 192))]
    assert len({base, *map(run, others)}) == 4
    ids = {"build_key": "a" * 64, "base_build_key": MANIFEST.build_key}
    assert run(key(**ids, files={"adapter.safetensors": "0"})) == base
    with_encoder = run(key(**ids, files={"vision_encoder.onnx": "0"}))
    assert with_encoder == run(key(build_key="a" * 64)) != base


class BreakingChannel(FakeChannel):
    """Breaks streams after the outcome of the first sequence, `num_broken` of them."""

    num_broken = 0

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        async for event in super().stream(call):
            if isinstance(event, TextPiece | SequenceEnd):  # the last one comes first
                event.index = len(call.sequences) - 1 - event.index
            yield event
            if isinstance(event, SequenceEnd) and self.num_broken:
                self.num_broken -= 1
                raise RunnerUnreachable("killed")


def test_unfinished_sequences_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s = runner_calls._RETRY_PAUSES_S
    assert 0.5 < sum(pauses_s) < 3  # a killed runner is back, and a dead one refused soon
    monkeypatch.setattr(runner_calls, "_RETRY_PAUSES_S", (0.0,) * len(pauses_s))
    channel = BreakingChannel(FakeEncoder(), writer())
    channel.num_broken = 3
    answers = streamed_by(channel, 4)
    assert answers.text == "\n".join(["a circle"] * 4)
    assert [len(call.sequences) for call in channel.calls] == [4, 3, 2, 1]
    channel.num_broken = 4
    with pytest.raises(NotReady, match="starting or restarting"):
        streamed_by(channel, 5)


@pytest.mark.parametrize(
    ("failure", "error"),
    [(CallTimedOut("late"), DeadlineExceeded), (ChannelError("status 500"), ServiceError)],
)
def test_timeouts_and_errors_are_not_repeated(failure: Exception, error: type[Exception]) -> None:
    channel = FakeChannel(FakeEncoder(), FakeDecoder({}, failure=failure))
    with pytest.raises(error):
        run(write(RunnerClient(MANIFEST.model_id, channel)))
    assert len(channel.calls) == 1


LETHAL = "what ends it?"
LETHAL_SPEC = SequenceSpec(segments=[(LETHAL, True)], timeout_s=1)


class MortalChannel(FakeChannel):
    """Answers calls in batches, which break if one of their calls is lethal.

    Batch i begins with `num_calls[i]` calls, else with one; more may join it for some time.
    """

    def __init__(self, *num_calls: int) -> None:
        super().__init__(FakeEncoder(), FakeDecoder({"what is it?": "a circle", LETHAL: ""}))
        self.batches: list[list[RunnerCall]] = []
        self._num_calls = iter(num_calls)
        self._is_full = asyncio.Event()

    async def write(self, call: RunnerCall) -> Outcomes:
        if not self.batches or self._is_full.is_set():
            self.batches.append([])
            self._size = next(self._num_calls, 1)
            self._is_full = asyncio.Event()
        is_full = self._is_full
        batch = self.batches[-1]
        batch.append(call)
        if len(batch) == self._size:
            asyncio.get_running_loop().call_later(0.005, is_full.set)
        await is_full.wait()
        if any(map(is_lethal, batch)):
            raise CallBroken("killed")
        return await super().write(call)


def is_lethal(call: RunnerCall) -> bool:
    return call.sequences[0].segments[0][0] == LETHAL


@pytest.mark.parametrize("num_lethal", [1, 3])
async def test_request_that_kills_its_runner_is_repeated_once_and_alone(
    monkeypatch: pytest.MonkeyPatch, num_lethal: int
) -> None:
    monkeypatch.setattr(runner_calls, "_RETRY_PAUSES_S", (0.0,))
    num_calls = num_lethal + 6
    channel = MortalChannel(num_calls)
    client = RunnerClient(MANIFEST.model_id, channel)
    lethal = [write(client, seed, [LETHAL_SPEC]) for seed in range(num_lethal)]
    harmless = [write(client, seed) for seed in range(num_lethal, num_calls)]
    async with asyncio.timeout(60):
        answering = asyncio.gather(*lethal, *harmless, return_exceptions=True)
        while len(channel.batches) < 2:
            await asyncio.sleep(0.001)
        late = await asyncio.gather(*(write(client, seed) for seed in range(20, 24)))
        outcomes = await answering
    failures, answers = outcomes[:num_lethal], outcomes[num_lethal:]
    assert [type(failure) for failure in failures] == [RunnerFailed] * num_lethal
    assert all(isinstance(answer, WrittenAnswers) for answer in answers)
    assert {answer.text for answer in late} == {"a circle"}
    with_lethal = [batch for batch in channel.batches if any(map(is_lethal, batch))]
    assert [len(batch) for batch in with_lethal] == [num_calls] + [1] * num_lethal
    repeated = channel.batches[1 : num_calls + 1]
    assert [len(batch) for batch in repeated] == [1] * num_calls


async def test_repeated_call_waits_for_those_in_flight() -> None:
    isolation = Isolation(is_single=True)

    async def repeat() -> None:
        async with isolation.alone():
            pass

    async with isolation.shared():
        repeated = asyncio.create_task(repeat())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not repeated.done()
    await asyncio.wait_for(repeated, 60)


async def test_calls_of_other_runners_do_not_wait_for_repeated_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_calls, "_RETRY_PAUSES_S", (0.0,))
    channel = MortalChannel(1, 2)  # the second batch needs another call
    client = RunnerClient(MANIFEST.model_id, channel, is_single=False)
    async with asyncio.timeout(60):
        lethal = asyncio.gather(write(client, 0, [LETHAL_SPEC]), return_exceptions=True)
        while len(channel.batches) < 2:
            await asyncio.sleep(0.001)
        assert (await write(client, 1)).text == "a circle"
        assert isinstance((await lethal)[0], RunnerFailed)


async def test_cancelled_repetition_blocks_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_calls, "_RETRY_PAUSES_S", (0.0,))
    channel = MortalChannel(3)
    client = RunnerClient(MANIFEST.model_id, channel)
    lethal = [asyncio.create_task(write(client, seed, [LETHAL_SPEC])) for seed in range(3)]
    async with asyncio.timeout(60):
        while len(channel.batches) < 2:
            await asyncio.sleep(0.001)
        for task in lethal:
            task.cancel()
        assert (await write(client, 9)).text == "a circle"


class ShortChannel(FakeChannel):
    """Streams that end without outcomes."""

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        async for event in super().stream(call):
            yield event
            return


class ForgettingChannel(FakeChannel):
    """Has no features after any number of calls."""

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        if call:
            raise FeaturesMissing
        yield FoundFeatures(outcome="hit")


@pytest.mark.parametrize(
    ("channel", "code"),
    [
        (ShortChannel(FakeEncoder(), writer()), "internal"),
        (ForgettingChannel(FakeEncoder(), writer()), "not_ready"),
    ],
)
def test_incomplete_stream_is_an_error(channel: FakeChannel, code: str) -> None:
    with pytest.raises(ServiceError) as caught:
        streamed_by(channel)
    assert caught.value.code == code


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
        ([piece(1, "x"), piece(0, "a"), end(1, "xy"), end(0, "a")], ["a", "\nxy"]),
        ([end(0, "whole"), piece(1, "x"), end(1, "x and rest")], ["whole\n", "x", " and rest"]),
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

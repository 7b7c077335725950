"""Simultaneous questions of a request to one runner are one call, with the same answers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from imaging.files import ImageLimits
from service.errors import InternalError, NotReady, ServiceError
from service.images.decoding import ImageDecoder, LazyImage
from service.inference.runner_calls import JoinedCalls, RunnerClient
from service.inference.served_models import ServedModel
from tests.support.catalog import FLORENCE
from tests.support.fake_runners import FakeChannel, FakeDecoder, FakeEncoder
from tests.support.fake_service import PNG, served
from wire.runner_channel import FeaturesMissing, RunnerCall, RunnerUnreachable
from wire.runner_messages import Failed, SequenceSpec

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


async def opened() -> LazyImage:
    image = LazyImage(PNG, ImageDecoder(ImageLimits(1_000_000), 2), "a")
    await image.open()
    return image


def run(
    scenario: Callable[[JoinedCalls, FakeChannel, LazyImage], Awaitable[None]],
    decoder: FakeDecoder | None = None,
    num_broken: int = 0,
) -> None:
    async def whole() -> None:
        channel = BreakingChannel(FakeEncoder(), decoder or FakeDecoder(ANSWERS))
        channel.num_broken = num_broken
        joined = JoinedCalls(RunnerClient(MODEL.id, channel))
        try:
            await scenario(joined, channel, await opened())
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


def test_callers_at_the_same_time_share_a_call_and_its_pixels() -> None:
    async def scenario(joined: JoinedCalls, channel: FakeChannel, image: LazyImage) -> None:
        assert await written(joined, image, "a", "b c", "b") == ["one", "two\nthree", "two"]
        assert with_pixels(channel.calls) == [4]
        assert await written(joined, image, "c", "a") == ["three", "one"]
        assert with_pixels(channel.calls) == [4]
        assert len(channel.calls[-1].sequences) == 2

    run(scenario)


def test_callers_that_come_before_the_features_wait_for_them() -> None:
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

    run(scenario)


def test_a_sequence_that_fails_fails_its_caller_alone() -> None:
    async def scenario(joined: JoinedCalls, _: FakeChannel, image: LazyImage) -> None:
        one, failed, both = await written(joined, image, "a", "bad", "a bad")
        assert one == "one"
        assert isinstance(failed, ServiceError)
        assert isinstance(both, ServiceError)
        assert (failed.code, both.code) == ("overloaded", "overloaded")

    run(scenario)


def test_after_a_broken_connection_only_what_had_not_ended_is_repeated() -> None:
    decoder = FakeDecoder(ANSWERS)

    async def scenario(joined: JoinedCalls, channel: FakeChannel, image: LazyImage) -> None:
        assert await written(joined, image, "a", "b", "c") == ["one", "two", "three"]
        sequences = [len(call.sequences) for call in channel.calls]
        assert sequences[-2:] == [3, 2]

    run(scenario, decoder, num_broken=1)


def test_a_connection_that_breaks_twice_fails_what_had_not_ended() -> None:
    async def scenario(joined: JoinedCalls, _: FakeChannel, image: LazyImage) -> None:
        outcomes = await written(joined, image, "a", "b", "c")
        failures = [each for each in outcomes if isinstance(each, NotReady)]
        assert len(failures) == 1  # each of the two calls ended one sequence

    run(scenario, num_broken=2)


def test_closing_ends_the_sequences_in_the_runner() -> None:
    async def whole() -> None:
        decoder = FakeDecoder(ANSWERS, released=asyncio.Event())
        joined = JoinedCalls(RunnerClient(MODEL.id, FakeChannel(FakeEncoder(), decoder)))
        asking = asyncio.create_task(written(joined, await opened(), "a", "b"))
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

    run(scenario, FakeDecoder(ANSWERS, failure=ZeroDivisionError()))


def asked_once(channel: FakeChannel) -> None:
    async def whole() -> None:
        joined = JoinedCalls(RunnerClient(MODEL.id, channel))
        await joined.write(MODEL.manifest, await opened(), [spec("a")])

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_a_stream_that_ends_too_early_is_an_error() -> None:
    class ShortChannel(FakeChannel):
        """Ends without outcomes."""

        async def stream(self, call: RunnerCall):  # type: ignore[no-untyped-def]
            async for event in super().stream(call):
                yield event
                return

    with pytest.raises(InternalError, match="before the answer was complete"):
        asked_once(ShortChannel(FakeEncoder(), FakeDecoder(ANSWERS)))


def test_a_runner_that_misses_features_despite_pixels_is_not_asked_for_ever() -> None:
    class ForgettingChannel(FakeChannel):
        """Has no features after any number of calls."""

        async def stream(self, call: RunnerCall):  # type: ignore[no-untyped-def]
            for _ in call.sequences:
                raise FeaturesMissing
            yield

    with pytest.raises(NotReady):
        asked_once(ForgettingChannel(FakeEncoder(), FakeDecoder(ANSWERS)))

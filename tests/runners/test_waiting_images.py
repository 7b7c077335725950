import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from runners.waiting_images import WaitingImages

POISON = -1


@dataclass(slots=True)
class FakeEncoder:
    """Doubles numbers when it is let, refuses `POISON`, and notes its batches."""

    released: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)

    def __call__(self, images: Sequence[int]) -> list[int]:
        self.batches.append(list(images))
        assert self.released.wait(10)
        if POISON in images:
            raise ValueError("poison")
        return [2 * image for image in images]


async def gathered(encoder: FakeEncoder, images: Sequence[int], max_batch_size: int = 8) -> list[int | BaseException]:
    """Let one image in, then the others while it runs."""
    waiting = WaitingImages(encoder, max_batch_size)
    first = asyncio.create_task(waiting.outcome(images[0]))
    while not encoder.batches:
        await asyncio.sleep(0.001)
    others = [asyncio.create_task(waiting.outcome(image)) for image in images[1:]]
    await asyncio.sleep(0)
    encoder.released.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


def test_lone_image_goes_in_at_once_and_what_comes_meanwhile_goes_together() -> None:
    encoder = FakeEncoder()
    assert asyncio.run(gathered(encoder, [1, 2, 3, 4])) == [2, 4, 6, 8]
    assert encoder.batches == [[1], [2, 3, 4]]


def test_batch_has_at_most_its_limit_in_the_order_of_arrival() -> None:
    encoder = FakeEncoder()
    asyncio.run(gathered(encoder, [1, 2, 3, 4, 5, 6], max_batch_size=2))
    assert encoder.batches == [[1], [2, 3], [4, 5], [6]]


def test_poisoned_image_fails_alone() -> None:
    encoder = FakeEncoder()
    outcomes = asyncio.run(gathered(encoder, [1, 2, POISON, 3]))
    assert isinstance(outcomes[2], ValueError)
    assert [outcome for outcome in outcomes if not isinstance(outcome, ValueError)] == [2, 4, 6]
    assert encoder.batches == [[1], [2, POISON, 3], [2], [POISON], [3]]


def test_cancelled_image_is_not_encoded() -> None:
    encoder = FakeEncoder()

    async def cancel_second() -> int:
        waiting = WaitingImages(encoder, 8)
        first, second = (asyncio.create_task(waiting.outcome(image)) for image in (1, 2))
        while not encoder.batches:
            await asyncio.sleep(0.001)
        third = asyncio.create_task(waiting.outcome(3))
        await asyncio.sleep(0)
        second.cancel()
        third.cancel()
        await asyncio.sleep(0)
        encoder.released.set()
        with pytest.raises(asyncio.CancelledError):
            await third
        await first
        return await waiting.outcome(4)

    assert asyncio.run(cancel_second()) == 8
    assert 3 not in [image for batch in encoder.batches for image in batch]


def test_thread_works_again_after_it_was_idle() -> None:
    encoder = FakeEncoder()
    encoder.released.set()

    async def twice() -> list[int]:
        waiting = WaitingImages(encoder, 8)
        return [await waiting.outcome(1), await waiting.outcome(2)]

    assert asyncio.run(twice()) == [2, 4]

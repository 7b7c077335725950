"""Joins the calls of one request to one runner.

What is asked about an image at the same time is one call, whose sequences end on their own: each
caller gets its answer when its last sequence ends. The first call about an image may send pixels;
later ones wait until the runner has its features, and send none.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain

from service.errors import ServiceError
from service.images.decoding import LazyImage
from service.runner_client.runner_client import (
    FeaturesFound,
    RunnerClient,
    WrittenAnswers,
    written_answers,
)
from service.runner_client.stream_replay import OnText
from wire.artifacts.manifest import Manifest
from wire.runner_messages import Outcome, Outcomes, SequenceSpec

_Key = tuple[str, str | None]  # image and adapter


@dataclass(slots=True)
class _Part:
    """The sequences of one caller."""

    specs: Sequence[SequenceSpec]
    begun_s: float = field(default_factory=time.monotonic)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    answered: "asyncio.Future[WrittenAnswers]" = field(default_factory=asyncio.Future)

    def end(self, index: int, outcome: Outcome, found: FeaturesFound) -> None:
        """Take the outcome of a sequence; answer with the last."""
        self.outcomes[index] = outcome
        if len(self.outcomes) < len(self.specs) or self.answered.done():
            return
        outcomes = [self.outcomes[each] for each in range(len(self.specs))]
        answered = Outcomes(features=found.features, outcomes=outcomes)
        elapsed_s = time.monotonic() - self.begun_s
        try:
            self.answered.set_result(written_answers(answered, found.preprocess_s, elapsed_s))
        except ServiceError as error:
            self.answered.set_exception(error)

    def fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


class JoinedCalls:
    """The calls of one request to one runner, until `close`."""

    def __init__(self, runner: RunnerClient) -> None:
        self._runner = runner
        self._waiting: dict[_Key, list[_Part]] = {}
        self._has_features: dict[_Key, asyncio.Event] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def write(
        self,
        manifest: Manifest,
        image: LazyImage,
        specs: Sequence[SequenceSpec],
        _on_text: OnText | None = None,
    ) -> WrittenAnswers:
        """Return the written sequences as `RunnerClient.write` does; their text is not streamed."""
        key = image.key(manifest), specs[0].adapter
        part = _Part(specs)
        if key in self._waiting:
            self._waiting[key].append(part)
        else:
            self._waiting[key] = [part]
            task = asyncio.create_task(self._send(key, manifest, image))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return await part.answered

    @staticmethod
    async def close(joined: Iterable["JoinedCalls"]) -> None:
        """End all calls, which ends their sequences in the runners.

        They end, too, if this is cancelled: a call is cancelled at once, and only once.
        """
        sending = set(chain.from_iterable(each._sending for each in joined))
        for task in sending:
            task.cancel()
        if sending:
            await asyncio.wait(sending)

    async def _send(self, key: _Key, manifest: Manifest, image: LazyImage) -> None:
        has_features = self._has_features.get(key)
        if has_features is None:
            has_features = self._has_features[key] = asyncio.Event()
        else:
            await has_features.wait()
        await asyncio.sleep(0)  # the other callers of this turn of the event loop join
        parts = self._waiting.pop(key)
        places: list[tuple[_Part, int]] = []
        for part in parts:
            places += [(part, index) for index in range(len(part.specs))]
        specs = list(chain.from_iterable(part.specs for part in parts))
        found: FeaturesFound | None = None
        try:
            async with aclosing(self._runner.events(manifest, image, specs)) as events:
                async for event in events:
                    if isinstance(event, FeaturesFound):
                        found = event
                        has_features.set()
                    elif found is not None:
                        part, index = places[event.index]
                        part.end(index, event.outcome, found)
        except Exception as error:  # a defect, too, is raised by the callers
            for part in parts:
                part.fail(error)
        finally:
            has_features.set()

"""The runners as the gateway sees them: what they are asked, and how arrays travel to each."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from runners.messages import AnyArray, EncodeOutcome, ImageToEncode, MemoryAddress, Outcomes, SequenceSpec, WritingEvent
from service.shared_memory import SharedMemory

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class RunnerApi(Protocol):
    """A runner's service (see `service.runner_calls`)."""

    async def can_open(self, memory: MemoryAddress) -> bool:
        """Say whether arrays in this memory can be sent there."""
        ...

    async def is_ready(self, timeout: int) -> bool:
        """Say whether the service answers within `timeout` seconds."""
        ...

    async def close(self) -> None:
        """Close idle connections; nothing is asked after that."""
        ...


class EncoderApi(RunnerApi, Protocol):
    """An encoder service."""

    async def encode(self, image: ImageToEncode) -> EncodeOutcome:
        """Return the image's features, or why there are none."""
        ...


class DecoderApi(RunnerApi, Protocol):
    """A decoder service."""

    async def write(self, image_features: AnyArray, sequences: list[SequenceSpec]) -> Outcomes:
        """Return what became of each sequence. A caller that is cancelled ends them."""
        ...

    def stream(self, image_features: AnyArray, sequences: list[SequenceSpec]) -> AsyncGenerator[WritingEvent, None]:
        """Yield the text of each sequence as it is written, and what became of each; closed, it ends them."""
        ...


ApiT = TypeVar("ApiT", bound=RunnerApi)


class RunnerLink(Generic[ApiT]):
    """One runner's process. Arrays travel through `memory` if it can open it, and with their bytes if not."""

    def __init__(self, name: str, api: ApiT, memory: SharedMemory | None) -> None:
        self.name = name  # for the log
        self.api = api
        self._memory = memory
        self._can_open: bool | None = None  # None: not asked
        self._asking = asyncio.Lock()

    async def shared_memory(self) -> SharedMemory | None:
        """Return the memory if the runner can open it, which it is asked once."""
        if self._memory is None:
            return None
        async with self._asking:
            if self._can_open is None:
                self._can_open = await self.api.can_open(memory=self._memory.address)
                if not self._can_open:
                    logger.info("%s shares no memory: arrays travel with their bytes", self.name)
        return self._memory if self._can_open else None

    def forget(self) -> None:
        """Ask again: whoever answers there next may be another process, on another host."""
        self._can_open = None


class Runner(Protocol[ApiT]):
    """A part of a model, in one process or in several replicas."""

    async def ask(
        self, call: Callable[[RunnerLink[ApiT]], Awaitable[ResultT]], cost: int, key: bytes | None = None
    ) -> ResultT:
        """Return what `call` returns of one of the processes, asked once more where that is safe; raise what it raises.

        `cost` is how much work it is, `key` the hash of what the process may remember of earlier calls.
        """
        ...

    async def is_ready(self) -> bool:
        """Say whether one of the processes answers."""
        ...

    @property
    def num_replicas(self) -> int:
        """How many processes share the work now, at least 1."""
        ...

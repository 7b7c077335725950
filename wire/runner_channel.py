"""The interface of the channel to one model's runner, and its errors.

ChannelError              the runner answered with an error
├── FeaturesMissing       the runner has no features of the image: call again with pixels
├── RunnerUnreachable     no runner of this build took the call
│   └── CallBroken        the connection broke during the call: the runner may have ended of it
└── CallTimedOut          no answer before the deadline

A sequence that fails within an answered call is not an error of the channel but an outcome
(`Failed`). Implemented over HTTP by wire/http_channel.py, and for a model in the same process by
runners/in_process_channel.py.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from wire.pixels import Pixels
from wire.runner_messages import AdapterStates, Outcomes, SequenceSpec, WritingEvent


class ChannelError(Exception):
    """A call failed; calls are idempotent and may be repeated."""


class FeaturesMissing(ChannelError):
    """The runner has no features under the image key; call again with pixels."""


class RunnerUnreachable(ChannelError):
    """No connection, a broken one, or a runner that starts, drains or has loaded another build."""


class CallBroken(RunnerUnreachable):
    """The connection broke during the call, which may be the reason why the runner ended."""


class CallTimedOut(ChannelError):
    """The runner did not answer before the deadline."""


@dataclass(frozen=True, slots=True)
class RunnerCall:
    """Sequences of one image; `pixels` (H, W, 3) if the runner has no features of it."""

    image_key: str
    sequences: Sequence[SequenceSpec]
    pixels: Pixels | None = None


class RunnerChannel(Protocol):
    """Calls to the runner of one model. Cancelling a call ends its sequences in the runner."""

    async def write(self, call: RunnerCall) -> Outcomes:
        """Return the outcome of each sequence; raise a `ChannelError`."""

    def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        """Yield the source of the features, then each sequence's text as written and its outcome.

        Raise a `ChannelError`. Closing the generator ends the sequences.
        """

    async def is_ready(self) -> bool:
        """Return True if the runner reports within a second that it is ready."""

    async def adapters(self) -> AdapterStates | None:
        """Return the adapters of the runner, or None without an answer within a second."""

    async def close(self) -> None:
        """Free what the channel holds; make no call after that."""

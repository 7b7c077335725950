"""The process that makes outbound calls; it may be killed.

    python -m service.outbound.program FD PARENT MAX_BYTES

    FD          a socket that sends a socket for each call (service/outbound/messages.py)
    PARENT      the gateway, with which it ends
    MAX_BYTES   limit on its memory, as address space

It has no setting and no secret but those of the calls that it makes.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, closing, suppress

from imaging.sandbox import lower_limit
from service.outbound.engines import EngineCalls, get_document
from service.outbound.images import FileCalls, system_addresses
from service.outbound.messages import (
    CALL,
    Call,
    CallError,
    CallFailure,
    Event,
    FileCall,
    frame,
    read_frame,
)
from service.outbound.urls import is_public
from service.telemetry.logs import TextLines
from wire.host import end_with

_NICENESS = 5  # the gateway and the runners go first
_MAX_CALL_BYTES = 2**32 - 1  # its memory is bounded
_GRACE_S = 5.0  # after the timeout of a call, which the gateway cancels by then


class DirectCalls:
    """Calls made in this process."""

    def __init__(
        self,
        is_public: Callable[[str], bool] = is_public,
        look_up: Callable[[str], Sequence[str]] = system_addresses,
    ) -> None:
        self._files = FileCalls(is_public, look_up)
        self._engines = EngineCalls()

    def run(self, call: Call, body: bytes = b"") -> AsyncGenerator[Event, None]:
        """Yield the events of a call; raise `CallError`."""
        if isinstance(call, FileCall):
            return self._files.get(call)
        if call.kind == "document":
            return get_document(call, body)
        return self._engines.complete(call, body)

    async def close(self) -> None:
        await self._engines.close()


async def answer(calls: DirectCalls, connection: socket.socket) -> None:
    """Read the call of a connection, and send its events; the end of the connection cancels it."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    with closing(writer), suppress(OSError, ValueError):  # cancelled while it is sent
        _, call = await read_frame(reader, _MAX_CALL_BYTES)
        _, body = await read_frame(reader, _MAX_CALL_BYTES)
        sending = asyncio.create_task(_send(calls, CALL.validate_json(call), body, writer))
        del body
        gone = asyncio.create_task(reader.read())  # nothing more comes
        await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
        sending.cancel()
        gone.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)


async def _send(calls: DirectCalls, call: Call, body: bytes, writer: asyncio.StreamWriter) -> None:
    try:
        async with (
            asyncio.timeout(call.timeout_s + _GRACE_S),
            aclosing(calls.run(call, body)) as events,
        ):
            async for event in events:
                if isinstance(event, bytes):
                    writer.write(frame(b"B", event))
                else:
                    writer.write(frame(b"J", event.model_dump_json().encode()))
                await writer.drain()
            writer.write(frame(b"E"))
    except Exception as error:
        reason, message = "broken", type(error).__name__
        if isinstance(error, CallError):
            reason, message = error.reason, error.message
        failure = CallFailure(reason=reason, message=message)
        writer.write(frame(b"F", failure.model_dump_json().encode()))
    await writer.drain()


async def serve(control: socket.socket) -> None:
    """Answer the calls whose connections `control` receives."""
    control.setblocking(False)
    calls = DirectCalls()
    answering = set[asyncio.Task[None]]()  # the event loop holds only weak references

    def accept() -> None:
        _, fds, _, _ = socket.recv_fds(control, 1, 1)
        for fd in fds:
            task = asyncio.create_task(answer(calls, socket.socket(fileno=fd)))
            answering.add(task)
            task.add_done_callback(answering.discard)

    asyncio.get_running_loop().add_reader(control, accept)
    await asyncio.Event().wait()


def main(fd: int, parent: int, max_bytes: int) -> None:
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the gateway drains
    os.nice(_NICENESS)
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(TextLines())  # what libraries log may quote a host
    lower_limit(resource.RLIMIT_AS, max_bytes)
    lower_limit(resource.RLIMIT_CORE, 0)  # it would have keys
    asyncio.run(serve(socket.socket(fileno=fd)))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))

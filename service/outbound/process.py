"""The gateway's side of the process of outbound calls: it starts, restarts and calls it.

Each call has a socket pair, whose other end the process receives over `_control`: it ends with the
call, and closing it cancels the call. While no process runs, calls wait for the next one.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

from service.admission.fair_queue import ClientSlots
from service.admission.threads import current_client
from service.outbound.messages import (
    EVENT,
    Call,
    CallError,
    CallFailure,
    Event,
    frame,
    read_frame,
)
from wire.host import library_environment

logger = logging.getLogger(__name__)

_PROGRAM = "service.outbound.program"
_ROOT = Path(__file__).parents[2]  # where modules are imported from
_MAX_CALLS = 256
_PROGRAM_BYTES = 2_000_000_000  # address space of the interpreter, its libraries and its threads
_COPIES_OF_BODY = 2  # base64, and what is being sent
_MAX_FRAME_BYTES = 8_000_000  # a completion of the maximum size takes a tenth
_SHORT_LIFE_S = 5.0  # a process that ends sooner is restarted after a pause
_PAUSE_S = 1.0


class OutboundProcess:
    """Outbound calls, made by a process that `keep_running` starts."""

    def __init__(self, max_request_bytes: int) -> None:
        """`max_request_bytes`: memory of the requests that may wait for calls."""
        self._max_bytes = _PROGRAM_BYTES + _COPIES_OF_BODY * max_request_bytes
        self._control, self._control_of_process = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        self._slots = ClientSlots(_MAX_CALLS, _MAX_CALLS // 2)

    async def keep_running(self) -> None:
        """Start the process, and again when it has ended; end it when cancelled."""
        with self._control, self._control_of_process:
            while True:
                await self._run_once(self._control_of_process.fileno())

    async def _run_once(self, fd: int) -> None:
        start_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _PROGRAM, str(fd), str(os.getpid()), str(self._max_bytes)),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(fd,),
            cwd=_ROOT,
            env=library_environment(),
        )
        try:
            status = await process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        logger.error("%s ended with status %d and is restarted", _PROGRAM, status)
        if time.monotonic() - start_s < _SHORT_LIFE_S:
            await asyncio.sleep(_PAUSE_S)

    async def run(self, call: Call, body: bytes = b"") -> AsyncGenerator[Event, None]:
        """Yield the events of a call; raise `CallError`. Closing the generator cancels the call."""
        async with self._slots.slot(current_client.get()):
            try:
                reader, writer = await self._connect()
                try:
                    writer.write(frame(b"J", call.model_dump_json().encode()))
                    writer.write(frame(b"B", body))
                    del body  # the process has it
                    await writer.drain()
                    async for event in _events(reader):
                        yield event
                finally:
                    writer.transport.abort()
            except (OSError, ValueError) as error:
                raise CallError("lost", f"{type(error).__name__}: {error}") from error

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection, other_end = socket.socketpair()
        with other_end:
            try:
                socket.send_fds(self._control, [b"c"], [other_end.fileno()])
            except OSError:
                connection.close()
                raise
        return await asyncio.open_unix_connection(sock=connection)


async def _events(reader: asyncio.StreamReader) -> AsyncGenerator[Event, None]:
    """Yield the events of a connection until the end; raise `CallError`, or ValueError."""
    while True:
        kind, content = await read_frame(reader, _MAX_FRAME_BYTES)
        match kind:
            case b"B":
                yield content
            case b"J":
                yield EVENT.validate_json(content)
            case b"E":
                return
            case _:
                failure = CallFailure.model_validate_json(content)
                raise CallError(failure.reason, failure.message)
        await asyncio.sleep(0)  # many events at once do not hold up other clients

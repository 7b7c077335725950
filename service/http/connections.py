"""Bounds on HTTP connections before a request: number, size of a head, time for it.

It is uvicorn 0.54's protocol over httptools, which has none of them. A request's deadline covers
its body, and uvicorn's keep-alive timeout an idle connection.

Gateways that share a port accept by chance: one may get all connections of a burst. A gateway with
too many more than another closes the connection of a request after the answer (`Connection:
close`), until the clients' new connections are shared.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.admission.addresses import client_of

_MAX_RATIO = 1.5  # between the connections of two gateways, beyond one


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on connections and on the head of a request: its line and headers."""

    max_connections: int
    max_connections_per_address: int
    max_head_bytes: int = 64_000  # also limits data between two chunks of a body
    max_headers: int = 100
    head_timeout_s: float = 10.0


class BoundedConnection(HttpToolsProtocol):
    """One connection, within the `limits` of its subclass."""

    limits: ClassVar[ConnectionLimits]
    num_of_gateway: ClassVar["memoryview[int]"]
    gateway: ClassVar[int]
    _num_of_address: ClassVar[Counter[str]] = Counter()

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_message = False  # behind the head of a request
        self._num_head_bytes = 0
        # received since the parser last completed a head or returned a piece of a body
        self._num_pending_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = client_of(self.client[0]) if self.client else ""
        self._num_of_address[self._address] += 1
        is_over = self._num_of_address[self._address] > self.limits.max_connections_per_address
        if is_over or len(self.connections) > self.limits.max_connections:
            self.connections.discard(self)  # a burst that is refused leaves room for others
            transport.abort()
        else:
            self._start_timer()
        self.num_of_gateway[self.gateway] = len(self.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._num_of_address[self._address] -= 1
        if not self._num_of_address[self._address]:
            del self._num_of_address[self._address]
        super().connection_lost(exc)
        self.num_of_gateway[self.gateway] = len(self.connections)

    def data_received(self, data: bytes) -> None:
        self._num_pending_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._num_pending_bytes > self.limits.max_head_bytes:
            self.send_400_response("The head of the request is too large.")
        elif self._num_pending_bytes and not self._is_in_message:
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_message:  # else a trailer: uvicorn would append it to the headers
            super().on_header(name, value)
        self._count_head(len(name) + len(value))

    def _count_head(self, num_bytes: int) -> None:
        """Raise `ValueError`, which uvicorn answers with 400, for a head that is too large."""
        self._num_head_bytes += num_bytes
        if (
            self._num_head_bytes > self.limits.max_head_bytes
            or len(self.headers) > self.limits.max_headers
        ):
            raise ValueError("the head of the request is too large")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._is_in_message = True
        self._num_pending_bytes = 0
        super().on_headers_complete()
        if self.cycle and len(self.connections) > 1 + _MAX_RATIO * min(self.num_of_gateway):
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._num_pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._is_in_message = False
        self._num_pending_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_in_message:  # the answer did not need the body, whose rest is discarded
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.head_timeout_s, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # the next head began before the answer to the last request
            self._start_timer()


def bounded_connection(
    connection_limits: ConnectionLimits, num_connections: "memoryview[int]", number: int
) -> type[BoundedConnection]:
    """Return the protocol for uvicorn in gateway `number`; all share `num_connections` of each."""
    num_connections[number] = 0  # a killed process leaves its number

    class Limited(BoundedConnection):
        """A connection within the limits."""

        limits = connection_limits
        num_of_gateway = num_connections
        gateway = number

    return Limited

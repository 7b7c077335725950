"""A DNS server for one name, whose addresses a test changes, as those of a headless Service
change.
"""

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# id, flags, and the numbers of questions, answers and two more (RFC 1035, 4.1.1)
_HEADER = struct.Struct("!6H")
_FOUND = 0x8580
_MISSING = 0x8583
_TYPE_A = 1
# a pointer to the question's name, type A, class IN, a TTL of 5 s, length
_RECORD_HEAD = struct.pack("!HHHIH", 0xC00C, _TYPE_A, 1, 5, 4)


@dataclass
class NameServer:
    """The port of a server, and the addresses that it answers."""

    port: int
    addresses: Sequence[str]  # may be replaced at any time


@contextmanager
def name_server(name: str, addresses: Sequence[str]) -> Iterator[NameServer]:
    """Run a DNS server."""
    labels = [bytes([len(label)]) + label.encode() for label in name.split(".")]
    known_name = b"".join(labels) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        server = NameServer(listener.getsockname()[1], addresses)

        def answer_all() -> None:
            while True:
                question, client = listener.recvfrom(4096)
                if not question:
                    return
                listener.sendto(_answer(question, known_name, server.addresses), client)

        thread = threading.Thread(target=answer_all)
        thread.start()
        try:
            yield server
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"", ("127.0.0.1", server.port))
            thread.join()


def _answer(message: bytes, known_name: bytes, addresses: Sequence[str]) -> bytes:
    end = message.index(b"\0", _HEADER.size) + 1
    is_known = message[_HEADER.size : end].lower() == known_name
    kind, _ = struct.unpack_from("!HH", message, end)
    records: list[bytes] = []
    if is_known and kind == _TYPE_A:
        records = [_RECORD_HEAD + socket.inet_aton(address) for address in addresses]
    flags = _FOUND if is_known else _MISSING
    header = _HEADER.pack(_HEADER.unpack_from(message)[0], flags, 1, len(records), 0, 0)
    return header + message[_HEADER.size : end + 4] + b"".join(records)

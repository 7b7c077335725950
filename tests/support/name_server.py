"""A DNS server for one name, whose addresses a test changes."""

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# id, flags, and the numbers of questions, answers and two more (RFC 1035, 4.1.1)
_HEADER = struct.Struct("!6H")
# a pointer to the question's name, type A, class IN, a TTL of 5 s, length
_RECORD_HEAD = struct.pack("!HHHIH", 0xC00C, 1, 1, 5, 4)


@dataclass
class NameServer:
    """A DNS server for one name, whose addresses change as those of a headless Service."""

    port: int
    addresses: Sequence[str]  # may be replaced at any time

    def answer(self, message: bytes, name: str) -> bytes:
        labels = [bytes([len(label)]) + label.encode() for label in name.split(".")]
        end = message.index(b"\0", _HEADER.size) + 1
        is_known = message[_HEADER.size : end].lower() == b"".join(labels) + b"\0"
        (kind,) = struct.unpack_from("!H", message, end)
        records: list[bytes] = []
        if is_known and kind == 1:  # A
            records = [_RECORD_HEAD + socket.inet_aton(address) for address in self.addresses]
        (number, *_) = _HEADER.unpack_from(message)
        flags = 0x8580 if is_known else 0x8583
        header = _HEADER.pack(number, flags, 1, len(records), 0, 0)
        return header + message[_HEADER.size : end + 4] + b"".join(records)


@contextmanager
def name_server(name: str, addresses: Sequence[str]) -> Iterator[NameServer]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        server = NameServer(listener.getsockname()[1], addresses)

        def answer_all() -> None:
            while True:
                question, client = listener.recvfrom(4096)
                if not question:
                    return
                listener.sendto(server.answer(question, name), client)

        thread = threading.Thread(target=answer_all)
        thread.start()
        try:
            yield server
        finally:
            listener.sendto(b"", listener.getsockname())
            thread.join()

"""Raw connections: what a server answers to a head, and whether it has closed a connection."""

import socket
from contextlib import suppress


def answer_to(connection: socket.socket, head: bytes) -> bytes:
    """Return the answer's first line, empty if the connection closes while the head is sent."""
    with suppress(ConnectionError):
        connection.sendall(head)
        return connection.recv(65536).partition(b"\r\n")[0]
    return b""


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True

"""Processes of a running service, and connections to it."""

import socket
import subprocess
from contextlib import suppress

import psutil

from tests.support.forked_python import ForkedProcess

Process = subprocess.Popen[bytes] | ForkedProcess


def descendants(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def image_decoders(gateway: int | None = None) -> list[psutil.Process]:
    """Return the processes that decode images for a gateway, by default for this process."""
    decoders = []
    for child in psutil.Process(gateway).children():
        with suppress(psutil.NoSuchProcess):  # a zombie counts as ended
            if "service.images.decoding_program" in child.cmdline():
                decoders.append(child)
    return decoders


def is_alive(pid: int) -> bool:
    """Return True if a process runs; a zombie does not."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


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

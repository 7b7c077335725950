"""Calls with pixels: in shared memory on one host, in the request's body between hosts.

    one host        an anonymous file of the gateway, named in the JSON; the runner maps it without
                    a copy
    between hosts   application/octet-stream: JSON of `MESSAGE_BYTES_HEADER` bytes, then the pixels

At 192 px both take 0.34 ms, at 448 px memory takes a third of the body's time (two
cores, measured at 2a6566a). An anonymous file requires the same user and PID namespace; its
random name proves that it is not another process's with the same numbers.
"""

import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from wire.host import anonymous_file, open_anonymous
from wire.runner_messages import PixelMemory, WriteCall

IMAGE_KEY_HEADER = "X-Diptych-Image-Key"  # hexadecimal; proxies between hosts route by it
MESSAGE_BYTES_HEADER = "X-Diptych-Message-Bytes"
BUILD_HEADER = "X-Diptych-Build"  # the build key of a manifest
JSON = "application/json"
BYTES = "application/octet-stream"

_NAME_PREFIX = "diptych-"

Pixels = NDArray[np.uint8]


def body_of(call: WriteCall, pixels: Pixels | None) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a call with `pixels`, if any, in the body."""
    message = call.model_dump_json().encode()
    if pixels is None:
        return message, {"Content-Type": JSON}
    return message + pixels.tobytes(), {
        "Content-Type": BYTES,
        MESSAGE_BYTES_HEADER: str(len(message)),
    }


@contextmanager
def in_memory(pixels: Pixels) -> Iterator[PixelMemory]:
    """Yield shared memory with `pixels`; a runner that has mapped it may read on."""
    name = _NAME_PREFIX + secrets.token_hex(16)
    fd = anonymous_file(name)
    try:
        data = pixels.reshape(-1).data
        while data:
            data = data[os.write(fd, data) :]
        yield PixelMemory(pid=os.getpid(), fd=fd, name=name)
    finally:
        os.close(fd)


def read_call(
    body: bytes, message_bytes: str | None, shape_hwc: tuple[int, int, int]
) -> tuple[WriteCall, Pixels | None]:
    """Return the call and its pixels (H, W, 3), if any; raise `ValueError`.

    `message_bytes` is the value of `MESSAGE_BYTES_HEADER`.
    """
    data: mmap.mmap | memoryview
    if message_bytes is None:
        call = WriteCall.model_validate_json(body)
        if call.pixels is None:
            return call, None
        data = _mapped(call.pixels)
    else:
        if not message_bytes.isdecimal() or len(message_bytes) > len(str(len(body))):
            problem = f"{MESSAGE_BYTES_HEADER} is {message_bytes[:20]!r}"
            raise ValueError(f"{problem}; it must be a length within the body, {len(body)} bytes")
        length = int(message_bytes)
        call = WriteCall.model_validate_json(body[:length])
        data = memoryview(body)[length:]
    pixels = np.frombuffer(data, dtype=np.uint8)
    size = np.prod(shape_hwc)
    if pixels.size != size:
        raise ValueError(f"the pixels have {pixels.size} bytes; an image of this model has {size}")
    return call, pixels.reshape(shape_hwc)


def _mapped(memory: PixelMemory) -> mmap.mmap:
    if not memory.name.startswith(_NAME_PREFIX):
        raise ValueError(f"cannot open the shared pixels: {memory.name} is not a name of pixels")
    try:
        fd = open_anonymous(memory.pid, memory.fd, memory.name)
        with os.fdopen(fd, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: empty memory
        raise ValueError(f"cannot open the shared pixels: {error}") from error

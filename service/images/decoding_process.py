"""Decoding in a process, for images that take long: killed when no request needs it.

A thread could not be stopped, and its memory would be the gateway's. The process starts for one
image in about a tenth of a second (`service/images/decoding_program.py`), has a low priority
and a sandbox, and dies with the gateway. The gateway's environment may have secrets: the process
does not get it.
"""

import asyncio
import functools
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np

from imaging.errors import UnreadableImage
from imaging.files import ImageLimits, PixelBox
from wire.host import anonymous_file
from wire.pixels import Pixels

logger = logging.getLogger(__name__)

_PROGRAM = "service.images.decoding_program"
_ROOT = Path(__file__).parents[2]  # where modules are imported from
# needed to find libraries and modules
_ENVIRONMENT = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
_BUFFER_BYTES = 32_000_000  # more than the pixels of any model's input


class DecoderEnded(Exception):
    """The process ended before the image was decoded and resized: it was killed, or crashed."""


class DecodingProcess:
    """A process that decodes one image; it is killed when all its users have released it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()
        self._num_users = 1

    def keep(self) -> None:
        """Add a user, who will release it."""
        self._num_users += 1

    async def release(self) -> None:
        self._num_users -= 1
        if self._num_users == 0:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def resized(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
    ) -> Pixels:
        """Return the pixels (H, W, 3) of the image, or of a part, at exactly `size_wh`.

        Raise `DecoderEnded`.
        """
        # A caller that is cancelled must not leave its pixels in the pipe for the next one.
        return await asyncio.shield(asyncio.ensure_future(self._resized(size_wh, resample, crop)))

    async def _resized(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None
    ) -> Pixels:
        width, height = size_wh
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._lock:
            numbers = (width, height, resample, *(crop or ()))
            self._process.stdin.write(" ".join(map(str, numbers)).encode() + b"\n")
            try:
                pixels = await self._process.stdout.readexactly(width * height * 3)
            except asyncio.IncompleteReadError as error:
                raise await _ended(self._process) from error
        return np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3)


@asynccontextmanager
async def decoded_in_process(data: bytes, limits: ImageLimits) -> AsyncIterator[DecodingProcess]:
    """Decode in a process, released at the end; raise `UnreadableImage` or `DecoderEnded`."""
    with open(anonymous_file("image"), "wb", buffering=0) as file:
        await asyncio.to_thread(file.write, data)
        file.seek(0)
        arguments = (file.fileno(), os.getpid(), limits.max_pixels, limits.max_side_px)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _PROGRAM, *map(str, arguments)),
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=(file.fileno(),),
            cwd=_ROOT,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            limit=_BUFFER_BYTES,
        )
    decoding = DecodingProcess(process)
    try:
        assert process.stdout is not None
        report = await process.stdout.readline()
        if not report:
            raise await _ended(process)
        sandbox, _, message = report.decode().rstrip("\n").partition(" ")
        if sandbox != "sandboxed":
            _log_missing_sandbox()
        if message:
            raise UnreadableImage(message)
        yield decoding
    finally:
        await decoding.release()


async def _ended(process: Process) -> DecoderEnded:
    status = await process.wait()
    return DecoderEnded(f"the decoder of the image ended with status {status}")


@functools.cache
def _log_missing_sandbox() -> None:
    """Log it once."""
    machine = os.uname().machine
    logger.warning(
        "heavy images are decoded without a seccomp filter: this kernel refuses it or %s has none",
        machine,
    )

"""The process that decodes heavy images can only compute and answer."""

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from imaging.files import ImageLimits, decode_image
from service.images.decoding import decoded_in_process
from tests.support.attack_images import repeated_scans
from tests.support.fake_service import encoded, until
from tests.support.image_files import LIMITS, colour_steps, half_transparent, png

ROOT = Path(__file__).parents[2]
ATTEMPT = """
import ctypes, errno, mmap, os, socket, sys
from imaging.sandbox import confine
is_confined = confine(0)
try:
    {attempt}
except (OSError, MemoryError) as error:
    print(is_confined, errno.errorcode[getattr(error, "errno", errno.ENOMEM)])
"""
ANIMATION = {"save_all": True, "append_images": [Image.new("RGB", (64, 32))], "lossless": True}
IMAGES = [
    encoded(colour_steps(), "JPEG", progressive=True),
    encoded(colour_steps().convert("CMYK"), "JPEG"),
    encoded(colour_steps().convert("P"), "PNG", transparency=0),
    encoded(half_transparent("LA"), "PNG"),
    encoded(colour_steps(), "PNG", **ANIMATION),
    png(2, 1, 16, 0, b"\0\x12\x34\x56\x78"),
    encoded(half_transparent("RGBA"), "WEBP", lossless=True),
    encoded(colour_steps(), "WEBP", **ANIMATION),
]


def output_of(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return ended.stdout.strip()


def attempted(attempt: str) -> str:
    """Return whether a process in the sandbox has a filter, and the error of an attempt."""
    return output_of("-c", ATTEMPT.format(attempt=attempt))


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "open('/tmp/a-file', 'w')",
        "open('/proc/self/environ')",
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
        "os.kill(os.getppid(), 9)",
        "os.unlink('/tmp/no-file')",
        "os.dup(1)",
        "os.memfd_create('a')",
        "os.pidfd_open(os.getppid())",
        "os.setpriority(os.PRIO_PROCESS, 0, 19)",
    ],
)
def test_other_system_calls_are_refused(attempt: str) -> None:
    assert attempted(attempt) == "True EPERM"


def test_memory_is_limited() -> None:
    assert attempted("bytearray(2_000_000_000)") == "True ENOMEM"


async def test_sandbox_is_entered_before_decoding() -> None:
    async def decode() -> None:
        bomb = repeated_scans((5000, 5000), 800)
        async with decoded_in_process(bomb, ImageLimits(2_000_000_000)):
            pass

    decoding = asyncio.ensure_future(decode())
    await until(filtered)
    child = filtered()
    assert child is not None
    # 24 bytes for each of 2 billion pixels
    assert child.rlimit(psutil.RLIMIT_AS)[1] < 100_000_000_000
    assert not decoding.done()
    decoding.cancel()
    await asyncio.gather(decoding, return_exceptions=True)


def filtered() -> psutil.Process | None:
    """Return a child of this process with a seccomp filter."""
    for child in psutil.Process().children():
        if "Seccomp:\t2" in Path(f"/proc/{child.pid}/status").read_text():
            return child
    return None


async def test_images_in_the_sandbox(caplog: pytest.LogCaptureFixture) -> None:
    for data in IMAGES:
        async with decoded_in_process(data, LIMITS) as image:
            pixels = await image.resized((30, 50), Image.Resampling.BICUBIC)
        expected = decode_image(data, LIMITS).resize((30, 50), Image.Resampling.BICUBIC)
        assert np.array_equal(pixels, np.asarray(expected))
    assert not caplog.records


async def test_environment_of_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
    before = psutil.Process().children()  # other tests of this process start some
    async with decoded_in_process(IMAGES[0], LIMITS):
        (child,) = set(psutil.Process().children()).difference(before)
        assert "OTEL_EXPORTER_OTLP_HEADERS" not in child.environ()


WITHOUT_FILTER = """
import asyncio, ctypes, logging
from service.images.decoding import decoded_in_process
from tests.support.attack_images import intact
from tests.support.image_files import LIMITS

async def main():
    for _ in range(2):
        async with decoded_in_process(intact("PNG"), LIMITS) as image:
            print((await image.resized((7, 9), 3)).shape)

ctypes.CDLL(None).personality(8)  # the machine has the name of one of 32 bits
logging.basicConfig()
asyncio.run(main())
"""


def test_missing_filter_is_logged_once() -> None:
    command = [sys.executable, "-c", WITHOUT_FILTER]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["(9, 7, 3)"] * 2
    (line,) = ended.stderr.splitlines()
    assert "heavy images are decoded without a seccomp filter" in line


@pytest.mark.parametrize("attempt", ["socket.socket()", "open('/tmp/a-file', 'w')"])
def test_limits_without_a_filter(attempt: str) -> None:
    """Files and sockets are refused by their number."""
    program = [sys.executable, "-c", ATTEMPT.format(attempt=attempt)]
    unknown = f"os.execv({sys.executable!r}, {program!r})"
    code = f"import ctypes, os; ctypes.CDLL(None).personality(8); {unknown}"
    assert output_of("-c", code) == "False EMFILE"

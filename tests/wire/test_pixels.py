import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from wire.pixels import (
    MESSAGE_BYTES_HEADER,
    BadCall,
    Pixels,
    body_of,
    in_memory,
    read_call,
)
from wire.runner_messages import PixelMemory, SequenceSpec, WriteCall

SHAPE = (6, 4, 3)
CALL = WriteCall(sequences=[SequenceSpec(segments=[("é", True)], timeout_s=1)])


def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def test_pixels_arrive_in_the_body() -> None:
    body, headers = body_of(CALL, pixels())
    received = read_call(body, headers[MESSAGE_BYTES_HEADER], SHAPE)
    assert received.call == CALL
    assert np.array_equal(received.pixels, pixels())  # type: ignore[arg-type]


def test_a_call_without_pixels_is_json() -> None:
    body, headers = body_of(CALL, None)
    assert headers == {"Content-Type": "application/json"}
    assert read_call(body, None, SHAPE).pixels is None


def test_shared_pixels_outlive_the_memory_of_the_sender() -> None:
    with in_memory(pixels()) as memory:
        body, _ = body_of(CALL.model_copy(update={"pixels": memory}), None)
        received = read_call(body, None, SHAPE)
    assert np.array_equal(received.pixels, pixels())  # type: ignore[arg-type]
    with pytest.raises(BadCall, match=r"cannot open the shared pixels|is not the memory"):
        read_call(body, None, SHAPE)


def test_another_process_reads_the_memory() -> None:
    code = (
        "import sys; from wire.pixels import read_call;"
        f"print(read_call(sys.stdin.buffer.read(), None, {SHAPE}).pixels.tobytes().hex())"
    )
    with in_memory(pixels()) as memory:
        body, _ = body_of(CALL.model_copy(update={"pixels": memory}), None)
        run = subprocess.run(
            [sys.executable, "-c", code], input=body, capture_output=True, check=True
        )
    assert run.stdout.decode().strip() == pixels().tobytes().hex()


def open_files() -> Iterator[str]:
    """Yield what the file descriptors of this process refer to; other threads may close some."""
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield os.readlink(each)


def test_no_file_descriptor_is_leaked() -> None:
    def num_open() -> int:
        gc.collect()
        return sum("memfd" in each for each in open_files())

    before = num_open()
    for _ in range(3):
        with in_memory(pixels()) as memory:
            read_call(body_of(CALL.model_copy(update={"pixels": memory}), None)[0], None, SHAPE)
    assert num_open() == before


def other_name(memory: PixelMemory) -> PixelMemory:
    return memory.model_copy(update={"name": "diptych-0"})


def other_fd(memory: PixelMemory) -> PixelMemory:
    return memory.model_copy(update={"fd": 0})


def no_process(memory: PixelMemory) -> PixelMemory:
    return memory.model_copy(update={"pid": 2**30})


@pytest.mark.parametrize("change", [other_name, other_fd, no_process])
def test_memory_with_another_name_is_refused(change: Callable[[PixelMemory], PixelMemory]) -> None:
    with in_memory(pixels()) as memory:
        body, _ = body_of(CALL.model_copy(update={"pixels": change(memory)}), None)
        with pytest.raises(BadCall, match=r"shared pixels|is not the memory"):
            read_call(body, None, SHAPE)


@pytest.mark.parametrize("message_bytes", ["-1", "", "1e1", "9" * 30, "3"])
def test_a_wrong_length_of_the_message_is_refused(message_bytes: str) -> None:
    body, _ = body_of(CALL, pixels())
    with pytest.raises(BadCall, match=r"must be a length within the body|not a call"):
        read_call(body, message_bytes, SHAPE)


def test_pixels_of_another_model_are_refused() -> None:
    body, headers = body_of(CALL, pixels())
    with pytest.raises(BadCall, match="the pixels have 72 bytes; an image of this model has 12"):
        read_call(body, headers[MESSAGE_BYTES_HEADER], (2, 2, 3))

import os

import numpy as np
import pytest

from wire.host import anonymous_file
from wire.pixels import MESSAGE_BYTES_HEADER, body_of, in_memory, read_call
from wire.runner_messages import PixelMemory, SequenceSpec, WriteCall

SHAPE = (6, 4, 3)
CALL = WriteCall(sequences=[SequenceSpec(segments=[("é", True)], timeout_s=1)])
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def body_with(memory: PixelMemory) -> bytes:
    return body_of(CALL.model_copy(update={"pixels": memory}), None)[0]


def test_pixels_of_another_image_are_refused() -> None:
    body, headers = body_of(CALL, PIXELS)
    with pytest.raises(match="the pixels have 72 bytes; an image of this model has 12"):
        read_call(body, headers[MESSAGE_BYTES_HEADER], (2, 2, 3))


def test_shared_pixels_outlive_their_memory() -> None:
    with in_memory(PIXELS) as memory:
        _, pixels = read_call(body_with(memory), None, SHAPE)
    assert np.array_equal(pixels, PIXELS)  # type: ignore[arg-type]
    with pytest.raises(match=r"cannot open the shared pixels|is not the memory"):
        read_call(body_with(memory), None, SHAPE)
    fd = anonymous_file("other")
    os.write(fd, PIXELS.tobytes())
    with pytest.raises(ValueError, match="other is not a name of pixels"):
        read_call(body_with(PixelMemory(pid=os.getpid(), fd=fd, name="other")), None, SHAPE)
    os.close(fd)


@pytest.mark.parametrize("change", [{"name": "diptych-0"}, {"fd": 0}, {"pid": 2**30}])
def test_other_memory_is_refused(change: dict[str, object]) -> None:
    with in_memory(PIXELS) as memory:
        body = body_with(memory.model_copy(update=change))
        with pytest.raises(match=r"shared pixels|is not the memory"):
            read_call(body, None, SHAPE)


@pytest.mark.parametrize("message_bytes", ["-1", "", "1e1", "9" * 30, "3"])
def test_wrong_length_is_refused(message_bytes: str) -> None:
    body, _ = body_of(CALL, PIXELS)
    with pytest.raises(match=r"must be a length within the body|Invalid JSON"):
        read_call(body, message_bytes, SHAPE)

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runners.messages import Array, MemoryAddress, SharedArray
from runners.shared_arrays import MemoryUnreachable, can_open, place, view
from service.shared_memory import Block, SharedMemory
from tests.support.export_cli import ROOT

FEATURES = np.random.default_rng(0).standard_normal((577, 768)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (33, 17, 3), dtype=np.uint8)
MEMORY = SharedMemory()
OTHERS_NAME = MEMORY.address.model_copy(update={"name": "diptych-" + "0" * 32})
NO_FD = MEMORY.address.model_copy(update={"fd": 999_999})
SOME_FILE = MEMORY.address.model_copy(update={"fd": 0, "name": "diptych-"})


def shared(array: NDArray[Any]) -> Block:
    MEMORY.reserve((5,), "uint8")  # so that not every array lies at the start
    block = MEMORY.reserve(array.shape, array.dtype.name)
    block.write(array)
    return block


def is_bit_equal(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("array", [FEATURES, PIXELS], ids=["features", "pixels"])
def test_an_array_arrives_bit_equal_with_its_bytes_and_through_memory(array: NDArray[Any]) -> None:
    block = shared(array)
    for message in (Array.of(array), block.message):
        received = type(message).model_validate_json(message.model_dump_json())
        assert is_bit_equal(view(received), array)


def test_an_array_is_placed_bit_equal_with_its_bytes_and_in_memory() -> None:
    block = MEMORY.reserve(FEATURES.shape, "float32")
    for target in (None, block.message):
        assert is_bit_equal(view(place(FEATURES, target)), FEATURES)
    assert is_bit_equal(block.read(), FEATURES)


def test_an_array_that_lies_scattered_is_placed_as_it_is() -> None:
    block = MEMORY.reserve(FEATURES.T.shape, "float32")
    place(FEATURES.T, block.message)
    assert is_bit_equal(block.read(), np.ascontiguousarray(FEATURES.T))


ANOTHER_PROCESS = """
import sys
from runners.messages import SharedArray
from runners.shared_arrays import place, view
source, target = map(SharedArray.model_validate_json, sys.argv[1:])
place(view(source) * 2, target)
"""


def test_another_process_reads_and_writes_the_same_memory() -> None:
    source, target = shared(FEATURES), MEMORY.reserve(FEATURES.shape, "float32")
    messages = [block.message.model_dump_json() for block in (source, target)]
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, *messages], cwd=ROOT, check=True, timeout=60)
    assert is_bit_equal(target.read(), FEATURES * 2)


OWNER = """
from service.shared_memory import SharedMemory
block = SharedMemory().reserve((4,), "float32")
print(block.message.model_dump_json(), flush=True)
input()
"""


def test_the_memory_of_a_process_that_ended_cannot_be_opened() -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        message = SharedArray.model_validate_json(owner.stdout.readline())
        was_open = can_open(message.memory)
        owner.kill()
    assert was_open
    assert not can_open(message.memory)
    with pytest.raises(MemoryUnreachable):
        view(message)


@pytest.mark.parametrize("address", [OTHERS_NAME, NO_FD, SOME_FILE], ids=["another name", "no such file", "a file"])
def test_what_is_not_the_memory_is_never_opened(address: MemoryAddress) -> None:
    message = shared(PIXELS).message.model_copy(update={"memory": address})
    assert not can_open(address)
    for use in (lambda: view(message), lambda: place(PIXELS, message)):
        with pytest.raises(MemoryUnreachable):
            use()


def test_a_view_of_what_was_freed_reads_as_zeros() -> None:
    block = shared(FEATURES)
    seen = view(block.message)
    del block
    assert not seen.any()


def test_what_is_written_into_a_view_stays_there() -> None:
    block = shared(FEATURES)
    view(block.message)[...] = 0
    assert is_bit_equal(block.read(), FEATURES)


@pytest.mark.parametrize("array", [FEATURES[:-1], FEATURES.astype(np.float64)], ids=["shape", "dtype"])
def test_an_array_of_another_shape_or_dtype_is_refused(array: NDArray[Any]) -> None:
    block = shared(FEATURES)
    with pytest.raises(ValueError, match=r"is not float32 \(577, 768\)"):
        place(array, block.message)


def test_an_array_beyond_the_end_is_refused() -> None:
    unwritten = MEMORY.reserve((1_000_000,), "float32").message
    with pytest.raises(MemoryUnreachable, match="ends"):
        view(unwritten)

import numpy as np
import pytest

from runners.shared_arrays import place
from service.shared_memory import Block, SharedMemory
from tests.support.memory_use import PAGE_BYTES, allocated

NUM_VALUES = 3 * PAGE_BYTES // 4  # three pages


def filled(memory: SharedMemory, value: float = 1.0) -> Block:
    block = memory.reserve((NUM_VALUES,), "float32")
    block.write(np.full(NUM_VALUES, value, dtype=np.float32))
    return block


def test_what_is_written_is_read() -> None:
    block = filled(SharedMemory(), 2.5)
    assert np.array_equal(block.read(), np.full(NUM_VALUES, 2.5, dtype=np.float32))


def test_a_block_takes_memory_when_it_is_written_and_until_nobody_refers_to_it() -> None:
    memory = SharedMemory()
    block = memory.reserve((NUM_VALUES,), "float32")
    assert allocated(memory) == 0
    block.write(np.ones(NUM_VALUES, dtype=np.float32))
    another = block
    del block
    assert allocated(memory) == another.num_bytes == 3 * PAGE_BYTES
    del another
    assert allocated(memory) == 0


@pytest.mark.parametrize(("shape", "num_pages"), [((0,), 1), ((1,), 1), ((NUM_VALUES,), 3), ((NUM_VALUES + 1,), 4)])
def test_a_block_counts_whole_pages(shape: tuple[int, ...], num_pages: int) -> None:
    assert SharedMemory().reserve(shape, "float32").num_bytes == num_pages * PAGE_BYTES


def test_no_place_is_given_out_twice() -> None:
    memory = SharedMemory()
    offsets = [filled(memory).message.offset for _ in range(5)]  # each is freed before the next is reserved
    assert len(set(offsets)) == 5


def test_freeing_one_block_leaves_its_neighbours() -> None:
    memory = SharedMemory()
    first, second, third = (filled(memory, value) for value in (1.0, 2.0, 3.0))
    del second
    assert (first.read()[-1], third.read()[0]) == (1.0, 3.0)
    assert allocated(memory) == first.num_bytes + third.num_bytes


def test_what_a_late_writer_left_is_taken_back_when_the_blocks_before_it_go() -> None:
    memory = SharedMemory()
    oldest, given_up, newest = (filled(memory) for _ in range(3))
    message = given_up.message
    del given_up
    place(np.ones(NUM_VALUES, dtype=np.float32), message)  # a runner that was slow
    assert allocated(memory) == 3 * newest.num_bytes
    del oldest
    assert allocated(memory) == newest.num_bytes
    assert newest.read()[0] == 1.0


def test_a_memory_outlasts_its_owner_while_a_block_is_in_use() -> None:
    block = filled(SharedMemory())
    assert block.read()[0] == 1.0

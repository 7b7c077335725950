"""Batches in fixed sizes, with the exported encoders in ONNX Runtime's CPU provider, which ignores
CUDA graphs.
"""

import logging
import subprocess
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from runners.encoder.session import FixedBatches, VisionEncoder, batch_sizes, split_batch
from runners.errors import EXIT_STATUS
from tests.support.export_cli import ModelStore
from wire.artifacts.manifest import VISION_ENCODER_FILE
from wire.pixels import Pixels

ROUNDING = 1e-4  # features are up to about 6; sums have another order
NO_MEMORY = RuntimeError(
    "bfc_arena.cc:360 … Available memory of 69123840 is smaller than requested bytes of 84934656"
)
REFUSED = RuntimeError("This session cannot use the graph capture feature as requested by the user")
INVALIDATED = RuntimeError(
    "CUDA failure 901: operation failed due to a previous error during capture"
)

# Arguments: the numbers of a session's run and of its graph.
Fault = Callable[[int, int], Exception | None]

LITTLE_MEMORY = """
import logging, sys
from pathlib import Path
import numpy as np
import onnxruntime as ort
from runners.encoder.session import FixedBatches

logging.basicConfig(level="INFO")
arena = ort.OrtArenaCfg({"max_mem": 60_000_000, "arena_extend_strategy": 1})
info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(info, arena)

def open_session(with_graphs):
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    return ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

batches = FixedBatches(open_session, 64, "cpu", "the encoder of a model")
batches.load()
print(batches.sizes, batches.encode(np.zeros((70, 192, 192, 3), np.uint8)).shape[0])
"""

LOST = """
import sys
from runners import errors
from runners.encoder.session import FixedBatches
from tests.runners.encoder.test_fixed_batches import Sessions

error = RuntimeError("CUDA failure 999: unknown error ; GPU=0 ; hostname=a")
def use_device():
    raise error
errors.use_device = use_device
sessions = Sessions(sys.argv[1], lambda number, graph_id: error if graph_id == 2 else None)
FixedBatches(sessions.open, 4, "cpu", "the encoder of a model").load()
"""


class Session:
    """An encoder's session that records its runs and fails in some; `stale`: replays change
    nothing.
    """

    def __init__(self, file: str, fault: Fault, stale: bool = False) -> None:
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self._fault = fault
        self._stale = stale
        self._num_runs = 0
        self.graph_ids: list[int] = []
        self.threads: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: onnxruntime.RunOptions) -> None:
        graph_id = int(options.get_run_config_entry("gpu_graph_id"))
        self._num_runs += 1
        if error := self._fault(self._num_runs, graph_id):
            raise RuntimeError(*error.args)  # a new one: its traceback holds this session
        self.threads.add(threading.get_ident())
        self.graph_ids.append(graph_id)
        is_replay = graph_id > 0 and self.graph_ids.count(graph_id) > 1
        if not (is_replay and self._stale):
            self._session.run_with_iobinding(binding, options)


class Sessions:
    """Opens sessions; those with graphs may be refused, have faults, or replay stale features."""

    def __init__(
        self,
        file: str,
        fault: Fault = lambda *_: None,
        stale: bool = False,
        refusal: Exception | None = None,
    ) -> None:
        self._file = file
        self._fault = fault
        self._stale = stale
        self._refusal = refusal
        # has graphs, and the number of sessions alive before
        self.opened: list[tuple[bool, int]] = []
        self._alive: weakref.WeakSet[Session] = weakref.WeakSet()

    @property
    def session(self) -> Session:
        (session,) = self._alive
        return session

    def open(self, with_graphs: bool) -> Any:
        self.opened.append((with_graphs, len(self._alive)))
        if with_graphs and self._refusal:
            raise self._refusal
        session = Session(self._file, self._fault, stale=self._stale and with_graphs)
        self._alive.add(session)
        return session


@pytest.fixture
def encoder_file(exported: ModelStore) -> str:
    return str(exported.newest("florence-2-mini") / VISION_ENCODER_FILE)


def random_pixels(num_images: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (num_images, 192, 192, 3), dtype=np.uint8)


def loaded(sessions: Sessions, max_batch_size: int = 8) -> FixedBatches:
    batches = FixedBatches(sessions.open, max_batch_size, "cpu", "the encoder of a model")
    batches.load()
    return batches


def assert_right(batches: FixedBatches, encoder_file: str) -> None:
    """Compare batches of several sizes with those of the encoder of the CPU."""
    encoder = VisionEncoder(Path(encoder_file).parent)
    encoder.load()
    for num_images in (1, 13):
        pixels = random_pixels(num_images)
        torch.testing.assert_close(
            batches.encode(pixels), encoder.encode(pixels), atol=ROUNDING, rtol=0
        )


@pytest.mark.parametrize(
    ("max_batch_size", "sizes"),
    [(1, [1]), (2, [2, 1]), (16, [16, 8, 4, 2, 1]), (24, [16, 8, 4, 2, 1])],
)
def test_sizes_are_the_powers_of_two(max_batch_size: int, sizes: list[int]) -> None:
    assert batch_sizes(max_batch_size) == sizes


@pytest.mark.parametrize(
    ("num_images", "sizes", "expected"),
    [
        (13, [16, 8, 4, 2, 1], [8, 4, 1]),
        (16, [16, 8, 4, 2, 1], [16]),
        (16, [8, 4, 2, 1], [8, 8]),  # the largest exceeds the memory
        (3, [1], [1, 1, 1]),
    ],
)
def test_a_batch_is_split_without_padding(
    num_images: int, sizes: list[int], expected: list[int]
) -> None:
    found = list(split_batch(num_images, sizes))
    assert [part.stop - part.start for part in found] == expected
    assert [index for part in found for index in range(part.start, part.stop)] == list(
        range(num_images)
    )


def test_features_are_those_of_the_whole_batch(artifacts: Path) -> None:
    encoder_file = str(artifacts / VISION_ENCODER_FILE)
    sessions = Sessions(encoder_file)
    batches = loaded(sessions)
    assert (batches.sizes, batches.captured_sizes) == ([8, 4, 2, 1], [8, 4, 2, 1])
    assert_right(batches, encoder_file)
    assert sessions.session.graph_ids[-3:] == [8, 4, 1]


def test_captures_follow_all_runs_and_checks_follow_all_captures(encoder_file: str) -> None:
    """A capture may not allocate, and may change the memory of those before."""
    sessions = Sessions(encoder_file)
    _batches = loaded(sessions)
    assert sessions.session.graph_ids == [-1] * 4 + [8, 4, 2, 1] + [8, -1, 4, -1, 2, -1, 1, -1]


@pytest.mark.parametrize("num_images", [2, 3])  # one part, and two
def test_features_do_not_change_when_further_batches_are_encoded(
    encoder_file: str, num_images: int
) -> None:
    batches = loaded(Sessions(encoder_file))
    features = batches.encode(random_pixels(num_images))
    kept = features.clone()
    assert not torch.equal(batches.encode(255 - random_pixels(num_images)), kept)
    assert torch.equal(features, kept)


def test_all_threads_run_batches_in_the_one_that_captured(encoder_file: str) -> None:
    sessions = Sessions(encoder_file)
    batches = loaded(sessions)
    with ThreadPoolExecutor(3) as callers:
        features = list(callers.map(batches.encode, [random_pixels(1)] * 6))
    assert all(torch.equal(each, features[0]) for each in features)
    assert len(sessions.session.threads) == 1
    assert threading.get_ident() not in sessions.session.threads


def test_a_session_that_refuses_graphs_is_opened_without(
    encoder_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions(encoder_file, refusal=REFUSED)
    batches = loaded(sessions)
    assert sessions.opened == [(True, 0), (False, 0)]
    assert (batches.sizes, batches.captured_sizes) == ([8, 4, 2, 1], [])
    assert_right(batches, encoder_file)
    (warning,) = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert (
        warning
        == f"the encoder of a model cannot use CUDA graphs; it runs without CUDA graphs: {REFUSED}"
    )


def test_a_failed_capture_leaves_all_sizes_without_graphs(
    encoder_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions(
        encoder_file, lambda number, graph_id: INVALIDATED if (number, graph_id) == (6, 4) else None
    )
    batches = loaded(sessions)
    assert sessions.opened == [(True, 0), (False, 0)]  # the weights are never on the device twice
    assert (batches.sizes, batches.captured_sizes) == ([8, 4, 2, 1], [])
    assert_right(batches, encoder_file)
    assert (
        "the encoder of a model cannot capture a batch of 4 images; it runs without CUDA graphs"
        in caplog.text
    )


def test_a_replay_that_gives_other_features_is_found(
    encoder_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions(encoder_file, stale=True)
    batches = loaded(sessions)
    assert batches.captured_sizes == []
    assert_right(batches, encoder_file)
    assert (
        "the encoder of a model cannot replay a batch of 8 images; it runs without CUDA graphs:"
        " other" in caplog.text
    )


def test_a_size_that_exceeds_the_memory_is_left_out(
    encoder_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions(encoder_file, lambda number, _: NO_MEMORY if number == 1 else None)
    batches = loaded(sessions)
    assert (batches.sizes, batches.captured_sizes) == ([4, 2, 1], [4, 2, 1])
    assert_right(batches, encoder_file)
    assert sessions.session.graph_ids[-4:] == [4, 4, 4, 1]
    assert (
        f"the encoder of a model: too little memory for batches of 8 images: {NO_MEMORY}"
        in caplog.text
    )


def test_a_single_image_that_exceeds_the_memory_ends_the_start(encoder_file: str) -> None:
    sessions = Sessions(encoder_file, lambda *_: NO_MEMORY)
    with pytest.raises(RuntimeError, match="smaller than requested"):
        loaded(sessions)


def test_sizes_beyond_a_limit_of_onnx_runtimes_memory_are_left_out(exported: ModelStore) -> None:
    run = in_python(LITTLE_MEMORY, exported)
    assert run.stdout == "[16, 8, 4, 2, 1] 70\n", run.stderr
    assert "the encoder of a model: too little memory for batches of 64 images: " in run.stderr


def test_a_lost_device_ends_the_process_instead_of_a_try_without_graphs(
    exported: ModelStore,
) -> None:
    run = in_python(LOST, exported)
    assert run.returncode == EXIT_STATUS, run.stderr
    assert "the encoder of a model lost its GPU" in run.stderr


def in_python(code: str, exported: ModelStore) -> "subprocess.CompletedProcess[str]":
    file = str(exported.newest("florence-2-mini") / VISION_ENCODER_FILE)
    return exported.forked("-c", code, file)

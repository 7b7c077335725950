from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.encoder.session import (
    VisionEncoder,
    check_provider,
    encode_splitting,
    execution_providers,
)
from tests.support.export_cli import ModelStore

# The message of ONNX Runtime 1.32 with limited memory (reproduced below).
ARENA = (
    "Error in execution: … bfc_arena.cc:360 … Failed to allocate memory for requested buffer of"
    " size 939524096"
)

SEVERAL = """
import resource, sys
from pathlib import Path
import numpy as np
from runners.encoder.session import VisionEncoder

pixels = np.random.default_rng(0).integers(0, 256, (128, 192, 192, 3), dtype=np.uint8)
encoders = []
for number in (0, 0, 1, 2):
    if number == len(encoders):
        encoders.append(VisionEncoder(Path(sys.argv[1]), num_threads=1))
        encoders[-1].load()
    start = int(Path("/proc/self/statm").read_text().split()[1])
    encoders[number].encode(pixels)
    print((int(Path("/proc/self/statm").read_text().split()[1]) - start) * resource.getpagesize())
"""

REAL = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from runners.encoder.session import VisionEncoder, encode_splitting

encoder = VisionEncoder(Path(sys.argv[1]), num_threads=1)
encoder.load()
pixels = np.random.default_rng(0).integers(0, 256, (64, 192, 192, 3), dtype=np.uint8)
expected = torch.cat([encoder.encode(part) for part in np.split(pixels, 8)])
tried = []

def run(part):
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + 20_000_000 if len(part) > 32 else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    tried.append(len(part))
    return encoder.backend.run(part)

features = encode_splitting(run, pixels)
print(tried, bool(torch.allclose(features, expected, atol=1e-4)))
"""


class FakeGraph:
    """Runs up to `max_images` images; a feature is the image's first pixel value."""

    def __init__(self, max_images: int, error: Exception) -> None:
        self.tried: list[int] = []
        self._max_images = max_images
        self._error = error

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        self.tried.append(len(pixels))
        if len(pixels) > self._max_images:
            raise self._error
        return torch.from_numpy(pixels[:, :1, :1, 0].astype(np.float32))


def numbered(num_images: int) -> NDArray[np.uint8]:
    return np.arange(num_images, dtype=np.uint8)[:, None, None, None] + np.zeros(
        (1, 4, 4, 3), dtype=np.uint8
    )


def test_a_batch_that_exceeds_the_memory_is_halved_and_keeps_its_order() -> None:
    graph = FakeGraph(2, RuntimeError(ARENA))
    features = encode_splitting(graph, numbered(7))
    assert features[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert graph.tried == [7, 3, 1, 2, 4, 2, 2]


def test_a_single_image_that_exceeds_the_memory_is_an_error() -> None:
    graph = FakeGraph(0, RuntimeError(ARENA))
    with pytest.raises(RuntimeError, match="Failed to allocate memory"):
        encode_splitting(graph, numbered(4))
    assert graph.tried == [4, 2, 1]


def test_other_errors_are_not_retried() -> None:
    graph = FakeGraph(0, RuntimeError("Non-zero status code returned while running Conv node"))
    with pytest.raises(RuntimeError, match="Conv"):
        encode_splitting(graph, numbered(4))
    assert graph.tried == [4]


def test_a_batch_is_halved_when_onnx_runtime_runs_out_of_memory(exported: ModelStore) -> None:
    run = exported.forked("-c", REAL, str(exported.newest("florence-2-mini")))
    assert run.stdout.split("\n")[0] == "[64, 32, 32] True", run.stderr


@pytest.mark.long
def test_batches_and_encoders_of_a_process_share_the_memory_of_activations(
    exported: ModelStore,
) -> None:
    run = exported.forked("-c", SEVERAL, str(exported.newest("florence-2-mini")))
    first, *others = map(int, run.stdout.split())
    assert first > 100_000_000
    assert max(others) < first / 4


def test_on_cuda_the_cpu_is_the_second_provider() -> None:
    assert execution_providers("cpu") == ["CPUExecutionProvider"]
    (cuda, options), cpu = execution_providers("cuda")
    assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert (options["enable_cuda_graph"], "gpu_mem_limit" in options) == ("0", False)


def test_on_cuda_a_session_with_graphs_and_its_limit_of_memory_are_options_of_the_provider() -> (
    None
):
    (_, options), _ = execution_providers("cuda", with_graphs=True, max_bytes=2**30)
    assert (options["enable_cuda_graph"], options["gpu_mem_limit"]) == ("1", "1073741824")


def test_a_fallback_to_the_cpu_is_refused() -> None:
    check_provider("cpu", ["CPUExecutionProvider"])
    check_provider("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="not on CUDA; install onnxruntime-gpu"):
        check_provider("cuda", ["CPUExecutionProvider"])


@pytest.fixture
def load(int8_artifacts: Path) -> Callable[[str], VisionEncoder]:
    def load_at(precision: str) -> VisionEncoder:
        encoder = VisionEncoder(int8_artifacts, 1, precision)  # type: ignore[arg-type]
        encoder.load()
        return encoder

    return load_at


def test_at_int8_an_image_has_the_same_features_in_every_batch(
    load: Callable[[str], VisionEncoder],
) -> None:
    encoder = load("int8")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 192, 192, 3), dtype=np.uint8)
    pixels[1] //= 64  # another range of values than its neighbours
    together = encoder.encode(pixels)
    for index, one in enumerate(pixels):
        assert torch.equal(encoder.encode(one[None])[0], together[index])
    assert torch.equal(encoder.encode(pixels[:2]), together[:2])


def test_features_do_not_change_when_the_next_batch_is_encoded(
    load: Callable[[str], VisionEncoder],
) -> None:
    encoder = load("float32")
    first, second = np.random.default_rng(0).integers(0, 256, (2, 1, 192, 192, 3), dtype=np.uint8)
    features = encoder.encode(first)
    kept = features.clone()
    assert not torch.equal(encoder.encode(second), kept)
    assert torch.equal(features, kept)

"""Batches of an encoder on a GPU, in fixed sizes that are captured as CUDA graphs.

A batch of 13 images runs as 8 + 4 + 1: nothing is padded. All sizes run in one session, which holds
the weights once; it keeps a graph for each `gpu_graph_id`, and each size is bound to the first
images of the same input and output.

    load     every size runs without a graph, the largest first, whose memory serves the others; one
             that exceeds the memory is left out. Then each is captured, and replays are compared;
             if one fails, all run without graphs
    encode   pixels into the input: one transfer; a replay; features out of the output, which the
             next part overwrites

Pixels and features are copied in a stream of the encoder: it never waits for the decoder, whose
work is in the default stream. Features may be freed while the decoder still reads them: they are
recorded there, and their memory is reused only after that.

ONNX Runtime keeps the graphs for the thread that captured them: all of this runs in one. While it
captures, no other thread may allocate memory of the GPU: encoders are loaded before the decoder's
thread starts (runners/model_worker.py). Sources: ONNX Runtime's page of the CUDA provider, "Using
CUDA Graphs"; cuda_execution_provider.cc, PerThreadContext. Shapes: B batch, H and W the input size
of the export, N image tokens, C hidden.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.device_errors import exit_if_device_lost, is_out_of_memory
from wire.artifacts.manifest import Device

logger = logging.getLogger(__name__)

_NO_GRAPH = -1  # the `gpu_graph_id` of a run that neither captures nor replays
# least similarity of a replay; float16 rounds to 0.9999, features of other pixels are far below
_MIN_COSINE = 0.999

Pixels = NDArray[np.uint8]
OpenSession = Callable[[bool], onnxruntime.InferenceSession]  # True opens it with CUDA graphs


def batch_sizes(max_batch_size: int) -> list[int]:
    """Return the powers of two up to `max_batch_size`, the largest first."""
    return [1 << power for power in reversed(range(max_batch_size.bit_length()))]


def split_batch(num_images: int, sizes: Sequence[int]) -> Iterator[slice]:
    """Yield the parts of a batch, each as large as `sizes` allow, from the largest to 1."""
    start = 0
    for size in sizes:
        while num_images - start >= size:
            yield slice(start, start + size)
            start += size


class BoundSession:
    """A session with input and output memory for `max_batch_size` images at fixed addresses."""

    def __init__(
        self, session: onnxruntime.InferenceSession, max_batch_size: int, device: Device
    ) -> None:
        self._session = session
        self._device = device
        (self._given,) = session.get_inputs()
        (self._made,) = session.get_outputs()
        if device == "cuda":  # the thread's stream is the encoder's
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]  # no types
        shape = (max_batch_size, *self._given.shape[1:])
        self._host_pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=device == "cuda")
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._features = torch.zeros((max_batch_size, *self._made.shape[1:]), device=device)
        self._bindings: dict[int, onnxruntime.IOBinding] = {}

    def empty_features(self, num_images: int) -> Tensor:
        """Return memory for features (B, N, C) on the device."""
        return torch.empty((num_images, *self._features.shape[1:]), device=self._device)

    def encode(self, pixels: Pixels) -> Tensor:
        """Return the features (B, N, C) of `pixels` (B, H, W, 3); the next call overwrites them."""
        size = len(pixels)
        np.copyto(self._host_pixels[:size].numpy(), pixels)
        self._pixels[:size].copy_(self._host_pixels[:size], non_blocking=True)
        self.run(size, graph_id=size)
        return self._features[:size]

    def check_replay(self, size: int) -> None:
        """Raise `RuntimeError` if a replay gives other features than a run without the graph."""
        shape = tuple(self._pixels[:size].shape)
        noise = np.random.default_rng(size).integers(0, 256, shape, dtype=np.uint8)
        replayed = self.encode(noise).clone()
        self.run(size)
        cosines = torch.cosine_similarity(replayed.flatten(1), self._features[:size].flatten(1))
        if not cosines.min() >= _MIN_COSINE:  # NaN also fails
            raise RuntimeError(f"other features than without graphs, cosines {cosines.tolist()}")

    def run(self, size: int, graph_id: int = _NO_GRAPH) -> None:
        """Compute the features of the first `size` images; without graphs `graph_id` is ignored."""
        if self._device == "cuda":
            # ONNX Runtime has its own stream; torch's may still copy pixels, and the features of
            # the run before.
            torch.cuda.current_stream().synchronize()
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        # returns when the features are computed
        self._session.run_with_iobinding(self._binding(size), options)

    def _binding(self, size: int) -> onnxruntime.IOBinding:
        if size not in self._bindings:
            binding = self._bindings[size] = self._session.io_binding()
            for name, bind, memory, dtype in (
                (self._given.name, binding.bind_input, self._pixels[:size], np.uint8),
                (self._made.name, binding.bind_output, self._features[:size], np.float32),
            ):
                bind(name, self._device, 0, dtype, tuple(memory.shape), memory.data_ptr())
        return self._bindings[size]


class FixedBatches:
    """Runs batches of any size in parts of fixed ones; `name` is the encoder's in the log."""

    def __init__(
        self, open_session: OpenSession, max_batch_size: int, device: Device, name: str
    ) -> None:
        self._open_session = open_session
        self._max_batch_size = max_batch_size
        self._device = device
        self._name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._session: BoundSession | None = None
        self.sizes: list[int] = []
        self.captured_sizes: list[int] = []

    def load(self, with_graphs: bool = True) -> None:
        """Open the session, run all sizes and capture them; raise the error of a single image."""
        self._thread.submit(self._load, with_graphs).result()

    def encode(self, pixels: Pixels) -> Tensor:
        """Return features (B, N, C), float32, on the device; `pixels`: resized RGB (B, H, W, 3)."""
        return self._thread.submit(self._encode, pixels).result()

    def _encode(self, pixels: Pixels) -> Tensor:
        if self._session is None:
            raise RuntimeError("the vision encoder is not loaded; call load() first")
        features = self._session.empty_features(len(pixels))
        for part in split_batch(len(pixels), self.sizes):
            features[part] = self._session.encode(pixels[part])
        if self._device == "cuda":
            torch.cuda.current_stream().synchronize()
            features.record_stream(torch.cuda.default_stream())
        return features

    def _load(self, with_graphs: bool) -> None:
        if not (with_graphs and self._capture()):
            self._open(with_graphs=False)
        message = "%s: batches of %s images, CUDA graphs of %s"
        logger.info(message, self._name, self.sizes, self.captured_sizes)

    def _capture(self) -> bool:
        """Capture all sizes; return False if the session refuses, or a capture fails."""
        action = "use CUDA graphs"
        try:
            session = self._open(with_graphs=True)
            for size in self.sizes:
                action = f"capture a batch of {size} images"
                session.run(size, graph_id=size)
            # replayed after all captures: none may have changed the memory of another
            for size in self.sizes:
                action = f"replay a batch of {size} images"
                session.check_replay(size)
        # The session then runs without graphs, or raises errors that graphs do not cause
        except Exception as error:
            exit_if_device_lost(error, self._name)
            # The traceback is not logged: it would hold the session.
            message = "%s cannot %s; it runs without CUDA graphs: %s"
            logger.warning(message, self._name, action, str(error))
            return False
        self.captured_sizes = list(self.sizes)
        return True

    def _open(self, with_graphs: bool) -> BoundSession:
        """Open a session and run every size without a graph; drop sizes that exceed the memory."""
        self._session = None  # a failed one is freed first
        session = BoundSession(self._open_session(with_graphs), self._max_batch_size, self._device)
        self.sizes = []
        for size in batch_sizes(self._max_batch_size):
            try:
                session.run(size)
                self.sizes.append(size)
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                message = "%s: too little memory for batches of %d images: %s"
                logger.warning(message, self._name, size, str(error))
        self._session = session
        return session

"""The exported vision encoder in an ONNX Runtime session.

On the CPU a batch runs at once, except at int8, where images run one by one: ONNX Runtime quantizes
a batch with one scale, and an image's features must not depend on the others. All encoders of a
process share one arena of memory: the activations of a batch are several times as large as the
weights, and batches run one after another. On a GPU batches run in fixed sizes (fixed_batches.py).
On both, a batch that exceeds the memory is halved. Shapes: B batch, H and W the input size of the
export, N image tokens, C hidden.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from runners.device_errors import is_out_of_memory
from runners.encoder.fixed_batches import FixedBatches, Pixels
from wire.artifacts.devices import CUDA_PROVIDER
from wire.artifacts.manifest import Device, Precision, vision_encoder_file

logger = logging.getLogger(__name__)

_CPU_PROVIDER = "CPUExecutionProvider"
# Grow memory by the requested size, as the decoder may share the GPU; no kernel search at each new
# batch size.
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """How an encoder uses a GPU."""

    max_batch_size: int = 16  # a larger batch runs in parts
    # Weights and activations: without a limit, a batch could take memory that the decoder needs.
    max_bytes: int | None = None
    name: str = "the encoder"  # shown in the log
    with_graphs: bool = True


class VisionEncoder:
    """The vision tower and projector of one model; `num_threads` 0: ONNX Runtime's default."""

    def __init__(
        self,
        folder: Path,
        num_threads: int = 0,
        precision: Precision = "float32",
        device: Device = "cpu",
        cuda: CudaOptions | None = None,
    ) -> None:
        self._file = folder / vision_encoder_file(precision)
        self._num_threads = num_threads
        self._device = device
        self._cuda = cuda or CudaOptions()
        self._max_images = 1 if precision == "int8" else None
        self._session: onnxruntime.InferenceSession | None = None
        self.fixed_batches: FixedBatches | None = None  # used on a GPU only

    def load(self) -> None:
        """Load the graph; raise `RuntimeError` if ONNX Runtime would run it on another device."""
        if self._device == "cpu":
            self._session = self._open()
            return
        onnxruntime.preload_dlls()  # the pip packages of CUDA's libraries are on no library path
        cuda = self._cuda
        self.fixed_batches = FixedBatches(self._open, cuda.max_batch_size, self._device, cuda.name)
        self.fixed_batches.load(cuda.with_graphs)

    def encode(self, pixels: Pixels) -> Tensor:
        """Return image features (B, N, C), float32, on the encoder's device, of resized RGB
        `pixels` (B, H, W, 3).
        """
        if self.fixed_batches is not None:
            return encode_splitting(self.fixed_batches.encode, pixels)
        step = self._max_images or len(pixels)
        starts = range(0, len(pixels), step)
        parts = [encode_splitting(self._run, pixels[start : start + step]) for start in starts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _open(self, with_graphs: bool = False) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        # Spinning idle threads would take cores from the decoder and from other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Memory planned after the first run would be a second block beside that of the first.
        options.enable_mem_pattern = False
        if self._device == "cpu":
            _make_shared_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        wanted = execution_providers(self._device, with_graphs, self._cuda.max_bytes)
        # No fallback: it would open the session on the CPU and hide the reason.
        session = onnxruntime.InferenceSession(
            str(self._file), options, providers=wanted, enable_fallback=0
        )
        check_provider(self._device, session.get_providers())
        return session

    def _run(self, pixels: Pixels) -> Tensor:
        """Run the graph on the CPU, which writes into the returned tensor's own memory."""
        if self._session is None:
            raise RuntimeError("the vision encoder is not loaded; call load() first")
        (given,) = self._session.get_inputs()
        (output,) = self._session.get_outputs()
        features = torch.empty((len(pixels), *output.shape[1:]))
        binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(pixels))
        binding.bind_ortvalue_input(given.name, value)
        shape = tuple(features.shape)
        binding.bind_output(output.name, "cpu", 0, np.float32, shape, features.data_ptr())
        self._session.run_with_iobinding(binding)
        return features


@cache
def _make_shared_arena() -> None:
    """Register the arena of sessions with `use_env_allocators`; ONNX Runtime has one per device."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)


def execution_providers(
    device: Device, with_graphs: bool = False, max_bytes: int | None = None
) -> list[Any]:
    """Return ONNX Runtime's providers for `device`; the CPU runs operators without a CUDA kernel.

    `with_graphs`: for CUDA graphs, which a session with other operators refuses. `max_bytes`: of
    the GPU's memory.
    """
    if device == "cpu":
        return [_CPU_PROVIDER]
    options = _CUDA_OPTIONS | {"enable_cuda_graph": "1" if with_graphs else "0"}
    if max_bytes is not None:
        options["gpu_mem_limit"] = str(max_bytes)
    return [(CUDA_PROVIDER, options), _CPU_PROVIDER]


def check_provider(device: Device, running: Sequence[str]) -> None:
    """Raise `RuntimeError` if `device` is CUDA and CUDA is not among the `running` providers.

    ONNX Runtime itself falls back to the CPU, many times slower.
    """
    if device == "cuda" and CUDA_PROVIDER not in running:
        raise RuntimeError(
            f"ONNX Runtime {onnxruntime.__version__} runs the vision encoder with"
            f" {', '.join(running)}, not on CUDA; install onnxruntime-gpu with its CUDA libraries,"
            " or set DIPTYCH_DEVICE to cpu or auto"
        )


def encode_splitting(run: Callable[[Pixels], Tensor], pixels: Pixels) -> Tensor:
    """Return the features of `pixels` by `run`; on out-of-memory, one half after the other.

    Other exceptions of `run` are raised, and out-of-memory errors of a single image.
    """
    try:
        return run(pixels)
    except Exception as error:
        if len(pixels) == 1 or not is_out_of_memory(error):
            raise
    half = len(pixels) // 2
    message = "out of memory in a batch of %d images; encoding %d and %d"
    logger.warning(message, len(pixels), half, len(pixels) - half)
    return torch.cat([encode_splitting(run, pixels[:half]), encode_splitting(run, pixels[half:])])

"""The exported vision encoder in ONNX Runtime, on a CPU or a GPU, and its part of a runner.

    CpuEncoder      a batch runs at once, except at int8, where images run one by one: ONNX Runtime
                    quantizes a batch with one scale, and an image's features must not depend on the
                    others. All encoders of a process share one arena of memory
    CudaEncoder     batches of fixed sizes, captured as CUDA graphs: a batch of 13 images runs as
                    8 + 4 + 1, nothing is padded. All sizes run in one session, which keeps a graph
                    for each `gpu_graph_id`, over the first images of the same input and output
    CudaMemory      staged images, and the streams of the copies
    EncoderWorker   encodes a runner's batches on either. The model has one, and so has each adapter
                    that changes the vision tower or the projector; they share one batcher, as two
                    batches at the same time would only slow each other down

On a GPU every size first runs without a graph, the largest first; one that exceeds the memory is
left out. Then each is captured, and replays are compared; if one fails, all run without graphs.

- ONNX Runtime keeps the graphs for the thread that captured them: all of this runs in one;
- while it captures, no other thread may allocate memory of the GPU: encoders are loaded before the
  decoder's thread starts (runners/model_worker.py);
- an image is copied to the device when it enters the batcher, while the batch before runs: by a
  thread, through pinned memory, in a stream of copies. It has a place in both until it is encoded;
- the graphs' input and output are copied in a stream of the encoder, which waits for the copies of
  the batch's own images, and never for the decoder's work. The next part of a batch overwrites
  both: features are copied out before, and the host waits for that;
- features are recorded in the decoder's stream: if they are freed while it reads them, their memory
  is reused only after that.

Sources: ONNX Runtime's page of the CUDA provider, "Using CUDA Graphs"; cuda_execution_provider.cc,
PerThreadContext; its page of the TensorRT provider. Shapes: B batch, H and W the input size of the
export, N image tokens, C hidden.
"""

import base64
import ctypes
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from runners.encoder.features_cache import Encoding
from runners.errors import exit_if_device_lost, is_out_of_memory
from runners.kv_cache import decoder_stream
from runners.options import BATCHES_IN_FLIGHT, RunnerOptions, encoder_batch_size
from runners.watchdog import Watchdog
from wire.artifacts.devices import EncoderProvider, choose_provider, encoder_device, num_threads
from wire.artifacts.manifest import (
    VISION_ENCODER_FILE,
    Device,
    Manifest,
    Precision,
    choose_precision,
    read_manifest,
    verify_files,
    vision_encoder_file,
)
from wire.artifacts.model_store import store_home
from wire.pixels import Pixels
from wire.runner_messages import EncodedImage, Failed
from wire.telemetry.runner_metrics import BATCH_SIZE
from wire.telemetry.tracing import past_span

logger = logging.getLogger(__name__)

_NO_GRAPH = -1  # the `gpu_graph_id` of a run that neither captures nor replays
# least similarity of a replay; float16 rounds to 0.9999, features of other pixels are far below
_MIN_COSINE = 0.999
_CPU_PROVIDER = "CPUExecutionProvider"
_CUDA_PROVIDER = "CUDAExecutionProvider"
_TENSORRT_PROVIDER = "TensorrtExecutionProvider"
# Grow memory by the requested size, as the decoder may share the GPU; no kernel search at each new
# batch size.
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}

Images = Sequence[Pixels] | Pixels  # B times (H, W, 3), resized RGB
Staged = Future[int]  # the place of an image whose copy to the device is launched
MaybeStaged = Sequence[Pixels | Staged] | Pixels
OpenSession = Callable[[bool], onnxruntime.InferenceSession]  # True opens it with CUDA graphs


class Encoder(Protocol):
    """A vision encoder on one device."""

    def stage(self, place: int, image: Pixels) -> Staged | None:
        """Start to copy an image to a place on the device; None if it is read where it is."""

    def encode(self, images: Images) -> Tensor:
        """Return float32 features (B, N, C); no image may be staged."""

    def encode_batch(self, batch: Sequence[Encoding]) -> tuple[list[Tensor], Tensor]:
        """Return features (N, C), each in memory of its own, and their means (B, C) on the host."""


class CpuEncoder:
    """Runs batches at once or, with `one_by_one`, image by image."""

    def __init__(self, session: onnxruntime.InferenceSession, one_by_one: bool) -> None:
        self._session = session
        self._one_by_one = one_by_one

    def stage(self, place: int, image: Pixels) -> None:  # noqa: ARG002
        return None

    def encode_batch(self, batch: Sequence[Encoding]) -> tuple[list[Tensor], Tensor]:
        features = self.encode([encoding.pixels for encoding in batch])
        rows = [*features] if len(batch) == 1 else [row.clone() for row in features]
        return rows, features.mean(dim=1)

    def encode(self, images: Images) -> Tensor:
        if self._one_by_one and len(images) > 1:
            return torch.cat([self.encode([image]) for image in images])
        pixels = np.stack(list(images)) if len(images) > 1 else images[0][np.newaxis]
        (model_input,) = self._session.get_inputs()
        (output,) = self._session.get_outputs()
        features = torch.empty((len(pixels), *output.shape[1:]))  # ONNX Runtime writes into it
        binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(pixels))
        binding.bind_ortvalue_input(model_input.name, value)
        shape = tuple(features.shape)
        binding.bind_output(output.name, "cpu", 0, np.float32, shape, features.data_ptr())
        self._session.run_with_iobinding(binding)
        return features


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


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """How an encoder uses a GPU."""

    max_batch_size: int = 16  # a larger batch runs in parts
    # Weights and activations: without a limit, a batch could take memory that the decoder needs.
    max_bytes: int | None = None
    name: str = "the encoder"  # shown in the log
    with_graphs: bool = True
    provider: EncoderProvider = "auto"
    tensorrt: Mapping[str, str] | None = None  # options of its provider, None: CUDA's runs


class CudaMemory:
    """Staged images, of `shape` (places, H, W, 3), on the device; made in the encoder's thread."""

    device: Device = "cuda"

    def __init__(self, shape: tuple[int, ...]) -> None:
        # the thread's stream is the encoder's
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]  # no types
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # the last copy to each place
        self._copied = [torch.cuda.Event() for _ in range(shape[0])]  # type: ignore[no-untyped-call]
        self._host_pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device="cuda")

    def stage(self, place: int, image: Pixels) -> int:
        """Launch the copy of an image to a place; return the place."""
        self._copied[place].synchronize()  # the image before may still be copied from there
        np.copyto(self._host_pixels[place].numpy(), image)
        with torch.cuda.stream(self._stream):
            self._pixels[place].copy_(self._host_pixels[place], non_blocking=True)
            self._copied[place].record()
        return place

    def load(self, place: int, model_input: Tensor) -> None:
        """Launch the copy of a staged image to the input of the model."""
        self._copied[place].wait()
        model_input.copy_(self._pixels[place], non_blocking=True)

    def to_host(self, values: Tensor) -> Tensor:
        """Return a copy on the host, after all work before it."""
        on_host = torch.empty(values.shape, pin_memory=True)
        on_host.copy_(values, non_blocking=True)
        self.wait()
        return on_host

    def wait(self) -> None:
        """Wait for the work of this thread's stream: other threads and ONNX Runtime have others."""
        torch.cuda.current_stream().synchronize()


class CudaEncoder:
    """Runs batches of any size in parts of fixed ones."""

    def __init__(
        self,
        open_session: OpenSession,
        options: CudaOptions,
        make_memory: Callable[[tuple[int, ...]], CudaMemory] = CudaMemory,
    ) -> None:
        self._open_session = open_session
        self._make_memory = make_memory
        self._max_batch_size = options.max_batch_size
        self._with_graphs = options.with_graphs
        self._name = options.name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=options.name)
        self._copying = ThreadPoolExecutor(1, thread_name_prefix=f"{options.name}, copies")
        self._bindings: dict[int, onnxruntime.IOBinding] = {}
        self.sizes: list[int] = []
        self.captured_sizes: list[int] = []

    def load(self) -> None:
        """Open the session, run all sizes and capture them; raise the error of a single image."""
        self._thread.submit(self._load).result()
        sizes = self.sizes, self.captured_sizes
        logger.info("%s: batches of %s images, CUDA graphs of %s", self._name, *sizes)

    def stage(self, place: int, image: Pixels) -> Staged:
        """Start to copy an image to a place that no other has; up to twice the largest batch."""
        return self._copying.submit(self._memory.stage, place, image)

    def encode(self, images: Images) -> Tensor:
        rows, _ = self._thread.submit(self._encode, images).result()
        features = torch.stack(rows)
        self._memory.wait()  # before the memory of rows is reused
        return features

    def encode_batch(self, batch: Sequence[Encoding]) -> tuple[list[Tensor], Tensor]:
        images = [encoding.staged or encoding.pixels for encoding in batch]
        return self._thread.submit(self._encode, images).result()

    def _encode(self, images: MaybeStaged) -> tuple[list[Tensor], Tensor]:
        rows: list[Tensor] = []
        for part in split_batch(len(images), self.sizes):
            rows.extend(features.clone() for features in self._replay(images[part]))
        means = torch.stack([row.mean(dim=0) for row in rows])
        return rows, self._memory.to_host(means)

    def _load(self) -> None:
        if not (self._with_graphs and self._capture()):
            self._open(with_graphs=False)

    def _capture(self) -> bool:
        try:
            self._open(with_graphs=True)
            for size in self.sizes:
                self._run(size, graph_id=size)
            # replayed after all captures: none may have changed the memory of another
            for size in self.sizes:
                self._check_replay(size)
        # The session then runs without graphs, or raises errors that graphs do not cause
        except Exception as error:
            exit_if_device_lost(error, self._name)
            # The traceback is not logged: it would hold the session.
            logger.warning("%s runs without CUDA graphs: %s", self._name, str(error))
            return False
        self.captured_sizes = list(self.sizes)
        return True

    def _open(self, with_graphs: bool) -> None:
        """Run every size without a graph; drop sizes that exceed the memory."""
        self._bindings.clear()  # a failed session and its memory are freed first
        self._session: Any = None
        self._features = torch.empty(0)
        self._session = self._open_session(with_graphs)
        (model_input,) = self._session.get_inputs()
        (output,) = self._session.get_outputs()
        image_shape = model_input.shape[1:]
        self._memory = self._make_memory((BATCHES_IN_FLIGHT * self._max_batch_size, *image_shape))
        # input and output at fixed addresses
        device = self._memory.device
        pixels_shape = (self._max_batch_size, *image_shape)
        self._pixels = torch.zeros(pixels_shape, dtype=torch.uint8, device=device)
        features_shape = (self._max_batch_size, *output.shape[1:])
        self._features = torch.zeros(features_shape, device=device)
        self.sizes = []
        for size in batch_sizes(self._max_batch_size):
            try:
                self._run(size)
                self.sizes.append(size)
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                message = "%s: too little memory for batches of %d images: %s"
                logger.warning(message, self._name, size, str(error))

    def _replay(self, images: MaybeStaged) -> Tensor:
        """Return the features (B, N, C) of images; the next call overwrites them."""
        size = len(images)
        staged: list[Staged] = []  # all copies are launched before the first is awaited
        for place, image in enumerate(images):
            staged.append(image if isinstance(image, Future) else self.stage(place, image))
        for model_input, copied in zip(self._pixels, staged, strict=False):
            self._memory.load(copied.result(), model_input)
        self._run(size, graph_id=size)
        return self._features[:size]

    def _check_replay(self, size: int) -> None:
        shape = tuple(self._pixels[:size].shape)
        noise = np.random.default_rng(size).integers(0, 256, shape, dtype=np.uint8)
        replayed = self._replay(noise).clone()
        self._run(size)
        cosines = torch.cosine_similarity(replayed.flatten(1), self._features[:size].flatten(1))
        if not cosines.min() >= _MIN_COSINE:  # NaN also fails
            raise RuntimeError(f"other features than without graphs, cosines {cosines.tolist()}")

    def _run(self, size: int, graph_id: int = _NO_GRAPH) -> None:
        if size not in self._bindings:
            (model_input,) = self._session.get_inputs()
            (output,) = self._session.get_outputs()
            binding = self._bindings[size] = self._session.io_binding()
            for name, bind, memory, dtype in (
                (model_input.name, binding.bind_input, self._pixels[:size], np.uint8),
                (output.name, binding.bind_output, self._features[:size], np.float32),
            ):
                bind(name, self._memory.device, 0, dtype, tuple(memory.shape), memory.data_ptr())
        self._memory.wait()  # for copies of the input, and of the features of the run before
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        # returns when the features are computed
        self._session.run_with_iobinding(self._bindings[size], options)


def load_encoder(
    folder: Path,
    num_threads: int = 0,
    precision: Precision = "float32",
    device: Device = "cpu",
    cuda: CudaOptions | None = None,
) -> Encoder:
    """Load one encoder; raise `RuntimeError` if ONNX Runtime would run it on another device."""
    cuda = cuda or CudaOptions()
    file = folder / vision_encoder_file(precision)
    if device == "cpu":
        return CpuEncoder(open_cpu_session(file, num_threads), precision == "int8")
    # without a GPU, ONNX Runtime says what is missing
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if choose_provider(cuda.provider, capability) == "tensorrt":
            file = folder / VISION_ENCODER_FILE  # it lacks the fused operators of the float16 graph
            options = tensorrt_options(folder, precision, cuda.max_batch_size)
            cuda = replace(cuda, tensorrt=options)
    encoder = CudaEncoder(partial(_open_cuda_session, file, num_threads, cuda), cuda)
    encoder.load()
    if cuda.tensorrt is not None:
        _compare(encoder, load_encoder(folder, num_threads), read_manifest(folder).image_size_wh)
    return encoder


def _compare(encoder: Encoder, reference: Encoder, image_size_wh: tuple[int, int]) -> None:
    """Raise `RuntimeError` unless TensorRT has the features of the CPU."""
    width, height = image_size_wh
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    features = encoder.encode(noise).cpu().flatten()
    cosine = torch.cosine_similarity(features, reference.encode(noise).flatten(), dim=0)
    if not cosine >= _MIN_COSINE:  # NaN also fails
        message = f"the features of TensorRT and of the CPU have a cosine of {cosine:.4f}, at least"
        raise RuntimeError(f"{message} {_MIN_COSINE} is allowed; set DIPTYCH_ENCODER_PROVIDER=cuda")


def _session_options(num_threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Spinning idle threads would take cores from the decoder and from other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Memory planned after the first run would be a second block beside that of the first.
    options.enable_mem_pattern = False
    return options


def open_cpu_session(file: Path, num_threads: int) -> onnxruntime.InferenceSession:
    _make_shared_arena()
    options = _session_options(num_threads)
    options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(
        str(file), options, providers=[_CPU_PROVIDER], enable_fallback=0
    )


def _open_cuda_session(
    file: Path, num_threads: int, cuda: CudaOptions, with_graphs: bool
) -> onnxruntime.InferenceSession:
    # the pip packages of CUDA's libraries are on no library path
    onnxruntime.preload_dlls()
    providers = execution_providers(cuda, with_graphs)
    # No fallback: it would open the session on the CPU and hide the reason.
    session = onnxruntime.InferenceSession(
        str(file), _session_options(num_threads), providers=providers, enable_fallback=0
    )
    for name, _ in providers[:-1]:
        if name not in session.get_providers():
            raise RuntimeError(
                f"ONNX Runtime runs the vision encoder without its {name}; install onnxruntime-gpu"
                " with its CUDA libraries, or set DIPTYCH_DEVICE to cpu or auto"
            )
    return session


@cache
def _make_shared_arena() -> None:
    """Register the arena of sessions with `use_env_allocators`; ONNX Runtime has one per device."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)


def execution_providers(cuda: CudaOptions, with_graphs: bool) -> list[Any]:
    """Return the providers; each runs the operators that those before it lack."""
    graphs = str(int(with_graphs))
    options = dict(_CUDA_OPTIONS)
    if cuda.max_bytes is not None:
        options["gpu_mem_limit"] = str(cuda.max_bytes)
    if cuda.tensorrt is None:
        return [(_CUDA_PROVIDER, options | {"enable_cuda_graph": graphs}), _CPU_PROVIDER]
    first = _TENSORRT_PROVIDER, {**cuda.tensorrt, "trt_cuda_graph_enable": graphs}
    return [first, (_CUDA_PROVIDER, options), _CPU_PROVIDER]


def tensorrt_options(folder: Path, precision: Precision, max_batch_size: int) -> dict[str, str]:
    """Verify the graph; return the options of its engines, stored for the newest versions only."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest, {VISION_ENCODER_FILE})
    version = ctypes.CDLL("libnvinfer.so.10").getInferLibVersion()
    engines = store_home() / "tensorrt" / folder.parent.name
    current = engines / f"{folder.name}-{onnxruntime.__version__}-{version}"
    current.mkdir(parents=True, exist_ok=True)
    for other in engines.iterdir():
        if other != current:
            shutil.rmtree(other, ignore_errors=True)
    options = {
        "trt_fp16_enable": str(int(precision == "float16")),
        "trt_layer_norm_fp32_fallback": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(current),
    }
    width, height = manifest.image_size_wh
    for name, size in (("min", 1), ("opt", max_batch_size), ("max", max_batch_size)):
        options[f"trt_profile_{name}_shapes"] = f"pixels:{size}x{height}x{width}x3"
    return options


class EncoderWorker:
    """Encodes batches for one model; the features (N, C), float32, are on `features_device`."""

    def __init__(self, manifest: Manifest, options: RunnerOptions, features_device: Device) -> None:
        self._manifest = manifest
        self._options = options
        self._features_device = features_device
        self._name = f"the encoder of {manifest.model_id}"
        self.watchdog = Watchdog(self._name, options.limits.stuck_after_s)

    def load(self, folder: Path, num_cores: int) -> None:
        """Load the graph and encode a black image; a GPU first captures or runs all batch sizes."""
        options = self._options
        manifest = self._manifest
        device = encoder_device(options.device)
        precision = choose_precision(manifest, "encoder", device, options.encoder_precision)
        threads = num_threads(options.encoder_threads, manifest.hidden_size, num_cores)
        max_bytes = None
        # without a GPU, ONNX Runtime says what is missing
        if device == "cuda" and torch.cuda.is_available():
            free_bytes, _ = torch.cuda.mem_get_info()
            # half of its part of the GPU: the decoder, which loads later, needs the rest
            max_bytes = free_bytes // options.num_sharing_gpu // 2
        size = encoder_batch_size(options)
        cuda = CudaOptions(size, max_bytes, self._name, provider=options.encoder_provider)
        self._encoder = load_encoder(folder, threads, precision, device, cuda)
        width, height = manifest.image_size_wh
        self._encoder.encode(np.zeros((1, height, width, 3), dtype=np.uint8))

    def stage(self, encoding: Encoding) -> Staged | None:
        return self._encoder.stage(encoding.place, encoding.pixels)

    def encode(self, batch: Sequence[Encoding]) -> list[EncodedImage]:
        """Set the features of each image; if a batch fails, its images are encoded one by one."""
        BATCH_SIZE.labels(self._manifest.model_id, "encode").observe(len(batch))
        start_s = self.watchdog.started_s = time.monotonic()
        failed = None
        try:
            rows, means = self._encoder.encode_batch(batch)
            for encoding, row, mean in zip(batch, rows, means.numpy(), strict=True):
                encoding.embedding = base64.b64encode(mean.tobytes()).decode()
                encoding.features = row.to(self._features_device)
                if encoding.features.is_cuda:
                    encoding.features.record_stream(decoder_stream())
        except Exception as error:  # any exception must reach the calls whose images caused it
            exit_if_device_lost(error, self._name)
            if len(batch) > 1:
                logger.warning("%s encodes a failed batch one by one: %r", self._name, error)
                return list(chain.from_iterable(self.encode([encoding]) for encoding in batch))
            logger.exception("%s failed for an image", self._name)
            message = f"the vision encoder failed: {type(error).__name__}"
            failed = Failed(code="internal", message=message)
        finally:
            self.watchdog.started_s = None
        encode_s = time.monotonic() - start_s
        size = {"diptych.batch_size": len(batch)}
        for encoding in batch:
            past_span("encode_queue", encoding.started_s, start_s, parent=encoding.trace)
            past_span("encode_batch", start_s, start_s + encode_s, size, encoding.trace)
        return [EncodedImage(encode_s=encode_s, failed=failed) for _ in batch]

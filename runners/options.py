"""The options of a runner. Imported by processes without torch."""

from dataclasses import dataclass, field
from pathlib import Path

from wire.artifacts.adapter_folder import AdapterLimits
from wire.artifacts.devices import DeviceSetting, EncoderProvider, may_have_cuda
from wire.artifacts.manifest import Device, WantedPrecision

_CUDA_POSITIONS = 1024  # prompt and answer
# A CPU batch takes as long as its images one by one: a large one only delays its first image.
_CPU_BATCH_SIZE = 2
_CUDA_BATCH_SIZE = 16
BATCHES_IN_FLIGHT = 2  # images of the next batch wait while one runs
# Limit even if memory allows more: a step of more sequences only delays each of them.
_CPU_SLOTS = 16
_MAX_PREFILL_TOKENS = 4096
# Tokens x hidden size on a CPU. Sequences of more work take as long one after the other, with steps
# of the live ones between them; measured at 775d805f.
_CPU_PREFILL = 800_000
_MAX_CUDA_SLOTS = 64
# Estimate: activations of a prefill, captured graphs, and memory that torch's allocator cannot use.
CUDA_RESERVE_BYTES = 2_500_000_000


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The limits of one scheduler."""

    # a live sequence takes one for each beam; 0: the default of the device
    num_slots: int
    # queued sequences, and images queued or being encoded; above it, calls are refused. The gateway
    # sends fewer by default: max_running_requests in service/inference/core.py
    max_waiting: int = 256
    # one prefill: image, prompt and padding; a single sequence may exceed it; 0: the default of the
    # device
    max_prefill_tokens: int = 0
    # maximum duration of one batch of images, or of one prefill and step
    stuck_after_s: float = 60.0


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """The options of one runner."""

    limits: SchedulerLimits
    max_batch_size: int  # images per encoder batch; 0: the default of the device
    max_cache_bytes: int  # image features
    max_positions: int  # one sequence: image, prompt and answer; 0: the default of the device
    encoder_threads: int  # ONNX Runtime's; 0: by the model's width
    decoder_threads: int  # torch's; 0: by the model's width
    device: DeviceSetting
    gpu: int | None  # index among the visible GPUs, or None for the first
    encoder_precision: WantedPrecision
    decoder_precision: WantedPrecision
    timeout_s: int  # one call
    otlp_endpoint: str | None  # of the collector of traces
    encoder_provider: EncoderProvider = "auto"  # on a GPU
    adapters: tuple[str, ...] = ()  # ids of the LoRA adapters that it serves beside its model
    adapters_folder: Path | None = None  # watched for further ones
    aliases: tuple[str, ...] = ()  # further names by which adapters name this model
    adapter_limits: AdapterLimits = field(default_factory=AdapterLimits)
    start_timeout_s: float = 600.0
    num_sharing_gpu: int = 1  # runners of this host on the same GPU, this one included


def encoder_batch_size(options: RunnerOptions) -> int:
    default = _CUDA_BATCH_SIZE if may_have_cuda(options.device) else _CPU_BATCH_SIZE
    return options.max_batch_size or default


def max_default_slots(setting: DeviceSetting) -> int:
    """Return a decoder's default number of slots; on a GPU fewer may fit."""
    return _MAX_CUDA_SLOTS if may_have_cuda(setting) else _CPU_SLOTS


def default_positions(device: Device, num_image_tokens: int) -> int:
    """Return the limit of a sequence's positions where none is set; 0: the model's.

    A GPU allocates every slot at the start: 8,192 positions of PaliGemma 2 are 0.87 GB.
    """
    return num_image_tokens + _CUDA_POSITIONS if device == "cuda" else 0


def default_prefill_tokens(device: Device, hidden_size: int) -> int:
    num_tokens = _MAX_PREFILL_TOKENS if device == "cuda" else _CPU_PREFILL // hidden_size
    return min(num_tokens, _MAX_PREFILL_TOKENS)


def runner_name(model_id: str) -> str:
    return f"{model_id}-runner"

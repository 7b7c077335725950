"""How a runner runs and how much it takes at once. Read by processes that have no torch."""

from dataclasses import dataclass

from runners.artifacts.devices import DeviceSetting
from runners.artifacts.precision import WantedPrecision
from runners.telemetry.tracing import TraceOptions


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Of one decoder."""

    num_slots: int  # live sequences
    max_waiting: int  # sequences, and images to encode; more are refused
    max_prefill_tokens: int  # image and prompt, of one prefill, padding included; one sequence alone may have more
    stuck_after_s: float = 60.0  # of one batch of images, or one prefill and step


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Of one runner."""

    limits: SchedulerLimits
    max_batch_size: int  # images in one batch of the encoder; 0: the device's own
    max_latency_ms: int  # above the slowest batch: BentoML drops images that it expects to be later
    max_cache_bytes: int  # of image features
    max_positions: int  # of a sequence: image, prompt and answer; 0: as many as the model allows
    encoder_threads: int  # of ONNX Runtime; 0: as the model's width asks for
    decoder_threads: int  # of torch; likewise
    device: DeviceSetting
    encoder_precision: WantedPrecision
    decoder_precision: WantedPrecision
    timeout_s: int  # of one call
    traces: TraceOptions


def runner_name(model_id: str) -> str:
    """Return the name of a model's runner as a service of BentoML."""
    return f"{model_id}-runner"

"""Prometheus metrics that a runner measures; on one host the gateway's /metrics includes them."""

import logging
import math
import time
from collections.abc import Callable
from functools import partial

from prometheus_client import Counter, Gauge, Histogram

logger = logging.getLogger(__name__)

BATCH_SIZE = Histogram(
    "diptych_batch_size",
    "Images in one encoder batch, or sequences in one decoder batch.",
    ["model", "stage"],
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
QUEUE_DEPTH = Gauge(
    "diptych_queue_depth",
    "Requests waiting for admission, images queued or being encoded, or sequences waiting for the"
    " decoder.",
    ["model", "stage"],
    multiprocess_mode="livesum",
)
LIVE_SEQUENCES = Gauge(
    "diptych_live_sequences",
    "Sequences that are being written.",
    ["model"],
    multiprocess_mode="livesum",
)
SLOTS = Gauge("diptych_slots", "Slots of a decoder.", ["model"], multiprocess_mode="livemax")
SLOTS_TAKEN = Gauge(
    "diptych_slots_taken",
    "Slots that hold a sequence; a sequence of several beams holds one for each.",
    ["model"],
    multiprocess_mode="livesum",
)
VISION_CACHE_REQUESTS = Counter(
    "diptych_vision_cache_requests_total",
    "Requests for image features: hit, miss (encoded), joined (encoded for another request at the"
    " same time).",
    ["model", "outcome"],
)
VISION_CACHE_BYTES = Gauge(
    "diptych_vision_cache_bytes",
    "Image features in memory.",
    ["model"],
    multiprocess_mode="livesum",
)
START_TIME_SECONDS = Gauge(
    "diptych_start_time_seconds",
    "Unix time of the last start; part is gateway or runner.",
    ["model", "part"],
    multiprocess_mode="max",  # the latest start, if a part was restarted
)
_gpu_gauge = partial(Gauge, labelnames=["gpu"], multiprocess_mode="livemostrecent")
GPU_MEMORY_BYTES = _gpu_gauge("diptych_gpu_memory_bytes", "Memory of a runner's GPU.")
GPU_MEMORY_USED_BYTES = _gpu_gauge(
    "diptych_gpu_memory_used_bytes", "Memory that all processes use of a runner's GPU."
)
GPU_UTILIZATION_RATIO = _gpu_gauge(
    "diptych_gpu_utilization_ratio", "Share of time in which a runner's GPU ran a kernel."
)
_GPU_EVERY_S = 5.0


def measure_gpu(uuid: str, sleep: Callable[[float], object] = time.sleep) -> None:
    """Measure a GPU for ever, in a thread of its own: a driver that hangs delays nothing else.

    Values that the driver does not return are NaN; the reason is logged when it changes.
    """
    import pynvml  # nvidia-ml-py: only where a GPU is used

    reason = ""
    while True:
        memory_bytes = used_bytes = utilization = math.nan
        try:
            pynvml.nvmlInit()  # only counted after the first success
            device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            memory_bytes = memory.total
            used_bytes = memory.used
            utilization = pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
        except pynvml.NVMLError as error:
            if str(error) != reason:
                reason = str(error)
                logger.warning("NVIDIA's driver does not return all metrics of %s: %s", uuid, error)
        GPU_MEMORY_BYTES.labels(uuid).set(memory_bytes)
        GPU_MEMORY_USED_BYTES.labels(uuid).set(used_bytes)
        GPU_UTILIZATION_RATIO.labels(uuid).set(utilization)
        sleep(_GPU_EVERY_S)

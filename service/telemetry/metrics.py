"""Prometheus metrics of the gateway (of runners: wire/telemetry/)."""

import asyncio
import time
from functools import partial

from prometheus_client import Counter, Gauge, Histogram

_LAG_EVERY_S = 0.05
# 1 ms to 60 s
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)

_seconds = partial(Histogram, buckets=_BUCKETS_S)

REQUESTS = Counter(
    "diptych_requests_total",
    "Outcomes of requests, one for each model of a comparison; status is ok, an error code, or"
    " client_gone.",
    ["api", "model", "task", "status"],
)
REQUEST_SECONDS = _seconds(
    "diptych_request_seconds",
    "Time of a request from its image and task to its answer.",
    ["model", "task"],
)
STAGE_SECONDS = _seconds(
    "diptych_stage_seconds", "Time of one stage of a request.", ["model", "task", "stage"]
)
TIME_TO_FIRST_TOKEN_SECONDS = _seconds(
    "diptych_time_to_first_token_seconds",
    "Time of a request from its image and task to its first token.",
    ["model", "task"],
)
TIME_PER_OUTPUT_TOKEN_SECONDS = _seconds(
    "diptych_time_per_output_token_seconds", "Time per token after the first.", ["model", "task"]
)
GENERATED_TOKENS = Counter("diptych_generated_tokens_total", "Generated tokens.", ["model", "task"])
CONSTRAINED_TOKENS = Counter(
    "diptych_constrained_tokens_total",
    "Generated tokens that a grammar chose against the model.",
    ["model", "task"],
)
UNPARSED_OUTPUTS = Counter(
    "diptych_unparsed_outputs_total", "Answers whose text could not be parsed.", ["model", "task"]
)
UNFAMILIAR_IMAGES = Counter(
    "diptych_unfamiliar_images_total",
    "Answers about images that are unlike those the model was calibrated on.",
    ["model"],
)
MODEL_INFO = Gauge(
    "diptych_model_info",
    "Served models: 1; 0 for an adapter that is no longer served.",
    ["model", "family", "revision", "precision", "resolution", "build_key"],
    multiprocess_mode="livemax",
)
REQUEST_MEMORY_BYTES = Gauge(
    "diptych_request_memory_bytes",
    "Memory of the bodies of requests, of images by URL, and of what is parsed of them.",
    multiprocess_mode="livesum",
)
EVENT_LOOP_LAG_SECONDS = _seconds(
    "diptych_event_loop_lag_seconds",
    "Time by which the gateway's event loop runs late, measured 20 times a second.",
)


async def measure_loop_lag() -> None:
    while True:
        due_s = time.monotonic() + _LAG_EVERY_S
        await asyncio.sleep(_LAG_EVERY_S)
        EVENT_LOOP_LAG_SECONDS.observe(max(0.0, time.monotonic() - due_s))

"""Prometheus metrics that a runner measures; on one host the gateway's /metrics includes them."""

from prometheus_client import Counter, Gauge, Histogram

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

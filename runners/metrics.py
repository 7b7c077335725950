"""Prometheus metrics that only a runner can measure; the gateway's /metrics shows them with all others."""

from prometheus_client import Counter, Gauge, Histogram

BATCH_SIZE = Histogram(
    "diptych_batch_size",
    "Images in one encoder batch, or sequences in one decoder batch.",
    ["model", "stage"],
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
QUEUE_DEPTH = Gauge(
    "diptych_queue_depth",
    "Images sent to the encoder and not yet answered, or sequences that wait for the decoder.",
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
ENCODER_CACHE_REQUESTS = Counter(
    "diptych_encoder_cache_requests_total",
    "Images asked of what an encoder keeps for gateways on other hosts: hit, or miss (encoded).",
    ["model", "outcome"],
)
START_TIME_SECONDS = Gauge(
    "diptych_start_time_seconds",
    "When a part was started last, Unix time; part is gateway, encoder or decoder.",
    ["model", "part"],
    multiprocess_mode="max",  # of a part that was started anew the last start counts
)

"""Prometheus metrics that only a runner can measure; the gateway's /metrics shows them with all others."""

from prometheus_client import Gauge, Histogram

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

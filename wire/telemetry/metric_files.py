"""Metrics of the processes of one host, in mapped files that any of them can add up.

The multiprocess mode of prometheus_client 0.26 (values.py, mmap_dict.py) with two changes. A file
belongs to a part of the service, not to a process id: a restarted part continues its counters. And
space is reserved before it is mapped: without it, a full folder in memory ends a process by SIGBUS.
If there is none, the values stay in the memory of their process, and /metrics lacks them.
"""

import asyncio
import errno
import logging
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    generate_latest,
    values,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import Response

from wire.host import anonymous_file, path_of

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_INITIAL_BYTES = 1 << 16  # prometheus_client's number
_MAX_ENTRY_BYTES = 40  # an entry without its key: length, padding, value, timestamp
_THREAD = ThreadPoolExecutor(1, "metrics")
_PROCESS = ["supervisor"]  # the part that this process is


class ReservedFile(MmapedDict):
    """A file whose space is reserved, or memory of this process if there is no space."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        path = filename if _reserve(filename, _INITIAL_BYTES) else _memory_path()
        super().__init__(path, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        """Add an entry; called with the lock of all values."""
        needed = self._used + len(key.encode()) + _MAX_ENTRY_BYTES
        if needed > self._capacity and not _reserve(self._fname, 2 * self._capacity):
            self._fname = _memory_path()
            self._f = open(self._fname, "r+b")  # noqa: SIM115  closed by `close`
            self._f.write(self._m[: self._used])
            self._f.truncate(self._capacity)
            self._m = mmap.mmap(self._f.fileno(), self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def use_metric_files() -> None:
    """Keep the values of metrics in files of `FOLDER_VARIABLE`."""
    values.MmapedDict = ReservedFile  # type: ignore[attr-defined]
    values.ValueClass = values.MultiProcessValue(lambda: _PROCESS[0])  # type: ignore[no-untyped-call]
    for metric in list(REGISTRY._collector_to_names):
        # one without labels has its value since it was declared, as the checks of a start do
        if isinstance(metric, MetricWrapperBase) and not metric._labelnames:
            metric._metric_init()  # type: ignore[no-untyped-call]


def write_metrics_as(part: str) -> None:
    """Write to the files of `part` and continue its counters; no other process may write them."""
    _PROCESS[0] = part


def remove_live_gauges(folder: Path, part: str) -> None:
    """Remove the gauges of a part that has ended: they must not be added up any more."""
    for gauge in folder.glob(f"gauge_live*_{part}.db"):
        gauge.unlink()


async def metrics(_request: Request) -> Response:
    """Return the metrics of all processes that write to `FOLDER_VARIABLE`, else this one's."""
    text = await asyncio.get_running_loop().run_in_executor(_THREAD, _text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _text() -> bytes:
    if FOLDER_VARIABLE not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _reserve(path: str, num_bytes: int) -> bool:
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            # not a hole: the space of zeros that are written is taken
            if size < num_bytes and file.write(bytes(num_bytes - size)) != num_bytes - size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        logger.error(
            "no space for metrics of %s (%s): /metrics lacks some of its values", _PROCESS[0], error
        )
        return False
    return True


def _memory_path() -> str:
    """Return the path of new memory, which lasts as long as the process; no folder limits it."""
    return path_of(anonymous_file("diptych-metrics"))

"""The decoder's thread: what waits becomes a batch, a batch is written to its end, each answer leaves as it ends.

It knows sequences, futures and the batch loop of `runners.generation`; nothing of a family, of HTTP or of tasks.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from runners.generation import Decoder, Finished, StateT, generate
from runners.metrics import BATCH_SIZE, LIVE_SEQUENCES, QUEUE_DEPTH
from runners.sequences import DeadlineExceeded, GeneratedSequence, Overloaded, SequenceError, SequenceRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenSequence:
    """A sequence that was written and where its time went."""

    sequence: GeneratedSequence
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: SequenceRequest
    future: "Future[WrittenSequence]" = field(default_factory=Future)
    since_s: float = field(default_factory=time.monotonic)


class BatchLoop:
    """Write sequences in batches of up to `max_batch_size`; at most `max_waiting` wait for the next."""

    def __init__(self, decoder: Decoder[StateT], model_id: str, max_batch_size: int, max_waiting: int) -> None:
        self._decoder = decoder
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=f"decoder {model_id}", daemon=True)
        self._batch_size = BATCH_SIZE.labels(model_id, "decode")
        self._queue_depth = QUEUE_DEPTH.labels(model_id, "decode")
        self._live_sequences = LIVE_SEQUENCES.labels(model_id)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write what was accepted, then end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, requests: Sequence[SequenceRequest]) -> "list[Future[WrittenSequence]]":
        """Accept all `requests`, or none: raise `Overloaded` if they would wait beyond `max_waiting`."""
        with self._changed:
            if len(self._waiting) + len(requests) > self._max_waiting:
                raise Overloaded(f"{len(self._waiting)} sequences wait already, at most {self._max_waiting} may")
            waiting = [_Waiting(request) for request in requests]
            self._waiting.extend(waiting)
            self._queue_depth.set(len(self._waiting))
            self._changed.notify()
        return [entry.future for entry in waiting]

    def _run(self) -> None:
        while batch := self._next_batch():
            self._write([entry for entry in batch if _is_still_wanted(entry)])

    def _next_batch(self) -> list[_Waiting]:
        """Wait for the next batch; return an empty one when the loop shall end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping)
            size = min(len(self._waiting), self._max_batch_size)
            batch = [self._waiting.popleft() for _ in range(size)]
            self._queue_depth.set(len(self._waiting))
        return batch

    def _write(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        start_s = time.monotonic()
        self._batch_size.observe(len(batch))
        self._live_sequences.set(len(batch))
        try:
            for finished in generate(self._decoder, [entry.request for entry in batch]):
                self._live_sequences.dec()
                _settle(batch[finished.index], finished, start_s)
        except Exception as error:  # whatever the model raised must reach everyone who waits for it
            logger.exception("a batch of %d sequences failed", len(batch))
            _fail_rest(batch, error)
        finally:
            self._live_sequences.set(0)


def _is_still_wanted(entry: _Waiting) -> bool:
    """Claim a waiting sequence for its batch, unless it was cancelled or its time ran out."""
    if not entry.future.set_running_or_notify_cancel():
        return False
    if time.monotonic() > entry.request.deadline_s:
        entry.future.set_exception(DeadlineExceeded("the time ran out before it was written"))
        return False
    return True


def _settle(entry: _Waiting, finished: Finished, start_s: float) -> None:
    if isinstance(finished.outcome, SequenceError):
        entry.future.set_exception(finished.outcome)
    else:
        queue_s = start_s - entry.since_s
        entry.future.set_result(WrittenSequence(finished.outcome, queue_s, finished.prefill_s, finished.decode_s))


def _fail_rest(batch: list[_Waiting], error: Exception) -> None:
    for entry in batch:
        if not entry.future.done():
            entry.future.set_exception(error)

"""The scheduler of a decoder: continuous batching in one thread.

    while sequences are queued or live:
        remove cancelled sequences
        admit queued ones, as many as have slots and fit the token budget of a prefill
        decode one token of every live sequence
        resolve the futures of those that ended

Invariants:
- sequences are admitted in the order of submission: a large one is never overtaken;
- every future is resolved exactly once: by its end, its cancellation, its deadline or the error
  that ended it; no error ends the thread, a lost device ends the process;
- a failed prefill fails its sequences alone, a failed step all live ones;
- the batch and `_live` belong to the thread; callers share only the queue, under `_changed`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.engines import NewEngine, new_engine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import (
    GeneratedSequence,
    LiveSequence,
    SequenceRequest,
    TokenListener,
)
from runners.errors import SequenceError, exit_if_device_lost
from runners.options import SchedulerLimits
from runners.watchdog import Watchdog
from wire.telemetry.runner_metrics import (
    BATCH_SIZE,
    LIVE_SEQUENCES,
    QUEUE_DEPTH,
    SLOTS,
    SLOTS_TAKEN,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenSequence:
    """A generated sequence and its timings."""

    sequence: GeneratedSequence
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(slots=True)
class ScheduledSequence:
    """A submitted sequence, from the queue to its result."""

    sequence: LiveSequence
    submitted_s: float
    future: "Future[WrittenSequence]" = field(default_factory=Future)
    admitted_s: float = 0.0
    prefilled_s: float = 0.0
    num_notified: int = 0  # tokens

    def notify(self, on_tokens: TokenListener) -> None:
        settled = self.sequence.settled_token_ids
        if len(settled) > self.num_notified:
            on_tokens(settled[self.num_notified :])
            self.num_notified = len(settled)

    def resolve(self, error: Exception | None = None) -> None:
        """Set the future's result or exception; of a cancelled future, only notify its waiters."""
        if not self.future.set_running_or_notify_cancel():
            return
        error = error or self.sequence.error
        if error is not None:
            self.future.set_exception(error)
            return
        written = WrittenSequence(
            self.sequence.generated(),
            queue_s=self.admitted_s - self.submitted_s,
            prefill_s=self.prefilled_s - self.admitted_s,
            decode_s=time.monotonic() - self.prefilled_s,
        )
        self.future.set_result(written)


class Scheduler:
    """Generates submitted sequences; sequences beyond `limits.num_slots` are queued."""

    def __init__(
        self,
        decoder: Decoder,
        model_id: str,
        limits: SchedulerLimits,
        make_engine: NewEngine = new_engine,
    ) -> None:
        self._decoder = decoder
        self._limits = limits
        self._batch = LiveBatch(decoder, limits.num_slots, make_engine)
        self._live: dict[LiveSequence, ScheduledSequence] = {}
        self._queue: deque[ScheduledSequence] = deque()
        self._changed = threading.Condition()  # guards the queue and `_is_stopping`
        self._is_stopping = False
        self._name = f"the decoder of {model_id}"
        self.watchdog = Watchdog(self._name, limits.stuck_after_s)
        self._thread = threading.Thread(target=self._run, name=f"decoder {model_id}", daemon=True)
        self._batch_size = BATCH_SIZE.labels(model_id, "decode")
        self._queue_depth = QUEUE_DEPTH.labels(model_id, "decode")
        self._live_sequences = LIVE_SEQUENCES.labels(model_id)
        self._slots = SLOTS.labels(model_id)
        self._slots_taken = SLOTS_TAKEN.labels(model_id)

    def start(self) -> None:
        self._slots.set(self._limits.num_slots)
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, requests: Sequence[SequenceRequest]) -> "list[Future[WrittenSequence]]":
        """Queue all `requests` or none.

        Raise `SequenceError` if the queue would exceed `max_waiting`, or a request needs more slots
        than there are. Cancelling a future frees the slots of its sequence within one step.
        """
        num_beams = max((request.num_beams for request in requests), default=1)
        limits = self._limits
        if num_beams > limits.num_slots:
            message = f"num_beams is {num_beams}; at most {limits.num_slots} are allowed"
            raise SequenceError("too_many_beams", message)
        with self._changed:
            if len(self._queue) + len(requests) > limits.max_waiting:
                queued = f"{len(self._queue)} sequences are queued, {len(requests)} were submitted"
                message = f"{queued}, at most {limits.max_waiting} are allowed"
                raise SequenceError("overloaded", message)
            now_s = time.monotonic()
            futures: list[Future[WrittenSequence]] = []
            for request in requests:
                sequence = start_sequence(request, self._decoder.rules)
                scheduled = ScheduledSequence(sequence, now_s)
                self._queue.append(scheduled)
                futures.append(scheduled.future)
            self._queue_depth.set(len(self._queue))
            self._changed.notify()
        return futures

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._live or self._queue):
                    if self._is_stopping:
                        return
                    self._changed.wait()
            self.watchdog.started_s = time.monotonic()
            try:
                self._iterate()
            except Exception as error:  # any exception must reach all callers that it affects
                exit_if_device_lost(error, self._name)
                logger.exception(
                    "a decode iteration failed with %d live sequences", len(self._live)
                )
                self._batch.clear()
                failed = list(self._live.values())
                self._live.clear()
                for scheduled in failed:
                    scheduled.resolve(error)
            self.watchdog.started_s = None
            self._live_sequences.set(len(self._live))
            self._slots_taken.set(self._batch.slots.num_used)

    def _iterate(self) -> None:
        for sequence, scheduled in self._live.items():
            if scheduled.future.cancelled():
                sequence.finish_reason = "stop"
        self._notify_and_finish()
        if admitted := self._take_from_queue():
            self._prefill(admitted)
            self._notify_and_finish()
        if self._live:
            self._batch_size.observe(self._batch.slots.num_used)
            self._batch.step()
            self._notify_and_finish()

    def _take_from_queue(self) -> list[ScheduledSequence]:
        """Dequeue sequences that have slots and fit the token budget, or one that exceeds it."""
        now_s = time.monotonic()
        taken: list[ScheduledSequence] = []
        longest = 0
        num_free = self._batch.slots.num_free
        with self._changed:
            while self._queue and self._queue[0].sequence.request.num_beams <= num_free:
                longest = max(longest, self._queue[0].sequence.request.num_prefix_tokens)
                if taken and longest * (len(taken) + 1) > self._limits.max_prefill_tokens:
                    break
                scheduled = self._queue.popleft()
                if scheduled.future.cancelled() or now_s > scheduled.sequence.request.deadline_s:
                    message = "the deadline passed before the sequence was admitted"
                    scheduled.resolve(SequenceError("deadline_exceeded", message))
                    continue
                scheduled.admitted_s = now_s
                taken.append(scheduled)
                num_free -= scheduled.sequence.request.num_beams
            self._queue_depth.set(len(self._queue))
        return taken

    def _prefill(self, admitted: Sequence[ScheduledSequence]) -> None:
        """Prefill sequences together, in halves if memory runs out; a failure fails only these."""
        sequences = [scheduled.sequence for scheduled in admitted]
        try:
            self._batch.admit(sequences)
        except torch.OutOfMemoryError as error:
            self._batch.remove(sequences)  # their slots may have been taken before
            if len(admitted) == 1:  # its frames would keep the activations
                admitted[0].resolve(error.with_traceback(None))
                return
        except Exception as error:  # any exception must reach all callers that it affects
            exit_if_device_lost(error, self._name)
            logger.exception("a prefill of %d sequences failed", len(admitted))
            self._batch.remove(sequences)
            for scheduled in admitted:
                scheduled.resolve(error)
            return
        else:
            for scheduled in admitted:
                scheduled.prefilled_s = time.monotonic()
                self._live[scheduled.sequence] = scheduled
            return
        # Outside the except block, where the exception would keep the activations of the failed
        # try.
        logger.warning(
            "out of memory in a prefill of %d sequences; retrying in two halves", len(admitted)
        )
        half = len(admitted) // 2
        self._prefill(admitted[:half])
        self._prefill(admitted[half:])

    def _notify_and_finish(self) -> None:
        ended: list[LiveSequence] = []
        for sequence, scheduled in self._live.items():
            if sequence.request.on_tokens is not None:
                scheduled.notify(sequence.request.on_tokens)
            if sequence.has_ended:
                ended.append(sequence)
        if ended:
            self._batch.remove(ended)
        for sequence in ended:
            self._live.pop(sequence).resolve()
